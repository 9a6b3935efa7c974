"""What the service does in the background: expire jobs, recover those of dead workers, remove what is over."""

import asyncio
from collections.abc import Callable

import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from jobs.errors import UnavailableError
from jobs.sweep import Sweeper

log = structlog.get_logger("service.upkeep")

Chore = Callable[[Sweeper], None]

TICK_SECONDS = 1.0  # a job expires within about that long; looking costs two commands
STORE_SWEEP_SECONDS = 3600  # all services together: it lists the whole store, for what is rarely there


async def keep_up(sweeper: Sweeper, sweep_seconds: float) -> None:
    """Run until cancelled. Any number of services may do it at once."""
    threads = CapacityLimiter(2)  # one for each loop: jobs expire in time though a slow store holds up the sweep
    await asyncio.gather(
        repeat([tick], sweeper, min(TICK_SECONDS, sweep_seconds), threads),
        repeat([sweep, sweep_store], sweeper, sweep_seconds, threads),
    )


async def repeat(chores: list[Chore], sweeper: Sweeper, seconds: float, threads: CapacityLimiter) -> None:
    """Do chores again and again, so many seconds after their last end."""
    while True:
        for each in chores:
            await attempt(each, sweeper, threads)
        await asyncio.sleep(seconds)


async def attempt(chore: Chore, sweeper: Sweeper, threads: CapacityLimiter) -> None:
    """Do a chore; one that fails must stop neither itself for good nor the others."""
    try:
        await to_thread.run_sync(chore, sweeper, limiter=threads)
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
