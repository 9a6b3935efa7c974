"""What the service does in the background: expire jobs, recover those of dead workers, remove what is over."""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from jobs.errors import UnavailableError
from jobs.sweep import Sweeper

log = structlog.get_logger("service.upkeep")

TICK_SECONDS = 1.0  # a job expires within about that long; looking costs two commands
STORE_SWEEP_SECONDS = 3600  # all services together: it lists the whole store, for what is rarely there


async def keep_up(sweeper: Sweeper, sweep_seconds: float) -> None:
    """Run until cancelled. Any number of services may do it at once."""
    sweep_at = time.monotonic()
    while True:
        await attempt(tick, sweeper)
        if time.monotonic() >= sweep_at:
            sweep_at = time.monotonic() + sweep_seconds
            await attempt(sweep, sweeper)
            await attempt(sweep_store, sweeper)
        await asyncio.sleep(min(TICK_SECONDS, sweep_seconds))


async def attempt(chore: Callable[[Sweeper], None], sweeper: Sweeper) -> None:
    """Do a chore; one that fails must stop neither itself for good nor the others."""
    try:
        await run_in_threadpool(chore, sweeper)
    except (RedisError, UnavailableError) as error:
        log.warning("upkeep_put_off", chore=chore.__name__, error=type(error).__name__)
    except Exception:
        log.exception("upkeep_failed", chore=chore.__name__)


def tick(sweeper: Sweeper) -> None:
    expired, recovered = sweeper.expire_jobs(), sweeper.recover_jobs()
    if expired or recovered:
        log.info("jobs_timed_out", expired=expired, recovered=recovered)


def sweep(sweeper: Sweeper) -> None:
    removed = sweeper.remove_ended()
    sweeper.trim_registries()
    if removed:
        log.info("swept", jobs=removed)


def sweep_store(sweeper: Sweeper) -> None:
    if sweeper.first_within(STORE_SWEEP_SECONDS):
        images, files = sweeper.remove_unpublished_images(), sweeper.remove_stray_files()
        if images or files:
            log.info("store_swept", unpublished_images=images, expired_files=files)
