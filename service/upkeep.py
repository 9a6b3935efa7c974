"""Background work of the service: expires jobs, recovers those of dead workers, removes old data."""

import asyncio
from collections.abc import Callable

import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from jobs.contract.errors import UnavailableError
from jobs.queue.cleaner import Cleaner
from jobs.queue.retirement import Retirement

log = structlog.get_logger("service.upkeep")

TICK_SECONDS = 1.0  # a job may expire this much too late; a check costs two Redis commands
STORE_SECONDS = 3600  # between two cleanings and recounts by any service; rare, because each lists the whole store


class Upkeep:
    """Runs the upkeep. Any number of services may run it at the same time."""

    def __init__(self, cleaner: Cleaner, retirement: Retirement, sweep_seconds: float) -> None:
        self._cleaner, self._retirement, self._sweep_seconds = cleaner, retirement, sweep_seconds

    async def run(self) -> None:
        """Run until cancelled; jobs expire in time even if a slow store delays the removal of others."""
        await asyncio.gather(
            repeat([self.tick], min(TICK_SECONDS, self._sweep_seconds)),
            repeat([self.retire, self.remove_ended, self.clean_store], self._sweep_seconds),
        )

    def tick(self) -> None:
        expired, recovered = self._cleaner.expire_jobs(), self._cleaner.recover_jobs()
        if expired or recovered:
            log.info("jobs_timed_out", expired=expired, recovered=recovered)

    def retire(self) -> None:
        pipelines, workers = self._retirement.retire_pipelines(), self._retirement.forget_dead_workers()
        if pipelines or workers:
            log.info("retired", pipelines=pipelines, workers=workers)

    def remove_ended(self) -> None:
        removed = self._cleaner.remove_ended()
        self._cleaner.trim_registries()
        if removed:
            log.info("jobs_removed", jobs=removed)

    def clean_store(self) -> None:
        if self._cleaner.first_within(STORE_SECONDS):
            self._cleaner.recount_webhooks()
            images, files = self._cleaner.remove_unpublished_images(), self._cleaner.remove_stray_files()
            if images or files:
                log.info("store_cleaned", unpublished_images=images, expired_files=files)


async def repeat(chores: list[Callable[[], None]], seconds: float) -> None:
    """Run chores in a thread of their own, repeatedly, with a pause of the given seconds."""
    thread = CapacityLimiter(1)
    while True:
        for each in chores:
            await run_chore(each, thread)
        await asyncio.sleep(seconds)


async def run_chore(chore: Callable[[], None], thread: CapacityLimiter) -> None:
    """Run a chore and log its error, so that a failure stops neither its repetition nor other chores."""
    try:
        await to_thread.run_sync(chore, limiter=thread)
    except (RedisError, UnavailableError) as error:
        log.warning("upkeep_put_off", chore=chore.__name__, error=type(error).__name__)
    except Exception:
        log.exception("upkeep_failed", chore=chore.__name__)
