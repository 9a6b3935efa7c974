"""What the service does in the background: expire jobs, recover those of dead workers, remove what is over."""

import asyncio
from collections.abc import Callable

import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from jobs.contract.errors import UnavailableError
from jobs.queue.retirement import Retirement
from jobs.queue.sweep import Sweeper

log = structlog.get_logger("service.upkeep")

TICK_SECONDS = 1.0  # a job expires within about that long; looking costs two commands
STORE_SWEEP_SECONDS = 3600  # all services together: it lists the whole store, for what is rarely there


class Upkeep:
    """Any number of services may do it at once."""

    def __init__(self, sweeper: Sweeper, retirement: Retirement, sweep_seconds: float) -> None:
        self._sweeper, self._retirement, self._sweep_seconds = sweeper, retirement, sweep_seconds

    async def run(self) -> None:
        """Run until cancelled; jobs expire in time though a slow store holds up the sweep."""
        await asyncio.gather(
            repeat([self.tick], min(TICK_SECONDS, self._sweep_seconds)),
            repeat([self.retire, self.sweep, self.sweep_store], self._sweep_seconds),
        )

    def tick(self) -> None:
        expired, recovered = self._sweeper.expire_jobs(), self._sweeper.recover_jobs()
        if expired or recovered:
            log.info("jobs_timed_out", expired=expired, recovered=recovered)

    def retire(self) -> None:
        pipelines, workers = self._retirement.retire_pipelines(), self._retirement.forget_dead_workers()
        if pipelines or workers:
            log.info("retired", pipelines=pipelines, workers=workers)

    def sweep(self) -> None:
        removed = self._sweeper.remove_ended()
        self._sweeper.trim_registries()
        if removed:
            log.info("swept", jobs=removed)

    def sweep_store(self) -> None:
        if self._sweeper.first_within(STORE_SWEEP_SECONDS):
            images, files = self._sweeper.remove_unpublished_images(), self._sweeper.remove_stray_files()
            if images or files:
                log.info("store_swept", unpublished_images=images, expired_files=files)


async def repeat(chores: list[Callable[[], None]], seconds: float) -> None:
    """Do chores again and again in a thread of their own, so many seconds after their last end."""
    thread = CapacityLimiter(1)
    while True:
        for each in chores:
            await attempt(each, thread)
        await asyncio.sleep(seconds)


async def attempt(chore: Callable[[], None], thread: CapacityLimiter) -> None:
    """Do a chore; one that fails must stop neither itself for good nor the others."""
    try:
        await to_thread.run_sync(chore, limiter=thread)
    except (RedisError, UnavailableError) as error:
        log.warning("upkeep_put_off", chore=chore.__name__, error=type(error).__name__)
    except Exception:
        log.exception("upkeep_failed", chore=chore.__name__)
