"""What the service does in the background: expire jobs, recover those of dead workers, remove what is over."""

import asyncio
import time

import structlog
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from jobs.errors import UnavailableError
from jobs.sweep import Sweeper

log = structlog.get_logger("service.upkeep")

TICK_SECONDS = 1.0  # a job expires within about that long; looking costs two commands


async def keep_up(sweeper: Sweeper, sweep_seconds: float) -> None:
    """Run until cancelled. Any number of services may do it at once."""
    swept_at = float("-inf")
    while True:
        try:
            await run_in_threadpool(tick, sweeper)
            if time.monotonic() - swept_at >= sweep_seconds:
                await run_in_threadpool(sweep, sweeper)
                swept_at = time.monotonic()
        except (RedisError, UnavailableError) as error:
            log.warning("upkeep_put_off", error=type(error).__name__)
        await asyncio.sleep(min(TICK_SECONDS, sweep_seconds))


def tick(sweeper: Sweeper) -> None:
    expired, recovered = sweeper.expire_jobs(), sweeper.recover_jobs()
    if expired or recovered:
        log.info("jobs_timed_out", expired=expired, recovered=recovered)


def sweep(sweeper: Sweeper) -> None:
    removed = sweeper.remove_ended()
    sweeper.trim_registries()
    images = sweeper.remove_unpublished_images()
    if removed or images:
        log.info("swept", jobs=removed, unpublished_images=images)
