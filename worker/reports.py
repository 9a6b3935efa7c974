"""Publishes progress and previews of claimed jobs. They are dropped, not repeated, if Redis is unavailable."""

import time
from dataclasses import dataclass

import structlog
from redis.client import Redis
from redis.exceptions import RedisError

from jobs.contract.job import Progress
from jobs.queue.events import Preview, ProgressPublisher, ProgressReport, publish_preview
from worker.claim import Claim

log = structlog.get_logger("worker.reports")

PROGRESS_SECONDS = 0.25  # between two reports of one job
PROGRESS_FRACTION = 0.005  # between two progress events of one job; its stream keeps these events


@dataclass
class Reported:
    """The last published progress of a claim."""

    at: float = float("-inf")
    fraction: float = float("-inf")


class Reports:
    """Publishes reports of one worker's claims."""

    def __init__(self, redis: Redis, lease_seconds: int) -> None:
        self._redis, self._publisher = redis, ProgressPublisher(redis, lease_seconds)
        self._reported: dict[str, Reported] = {}  # by token

    def begin(self, claim: Claim) -> None:
        self._reported[claim.token] = Reported()

    def end(self, claim: Claim) -> None:
        """Publish no more reports of a claim."""
        self._reported.pop(claim.token, None)

    def progress(self, *reached: tuple[Claim, Progress]) -> None:
        """Publish the progress of a step's jobs, at most once per PROGRESS_SECONDS for each job.

        For a job that runs alone every step is published, because the last one is evidence if its worker dies
        (`jobs.contract.worker_deaths`).
        All reports go in one command: Redis writes each command to disk before it answers, and the next step waits for
        the answer.
        """
        now = time.monotonic()
        if not (due := [self._note(last, *each, now) for each in reached if (last := self._due(each[0], now))]):
            return
        try:
            for job_id, error in self._publisher.publish(due).items():
                log.warning("report_lost", job_id=job_id, error=str(error))
        except RedisError as error:
            log.warning("report_lost", jobs=len(due), error=str(error))

    def _due(self, claim: Claim, now: float) -> Reported | None:
        last = self._reported.get(claim.token)
        return last if last is not None and (claim.alone or now - last.at >= PROGRESS_SECONDS) else None

    def _note(self, last: Reported, claim: Claim, progress: Progress, now: float) -> ProgressReport:
        worth_an_event = progress.fraction - last.fraction >= PROGRESS_FRACTION
        last.at, last.fraction = now, progress.fraction if worth_an_event else last.fraction
        return ProgressReport(claim.job_id, claim.token, progress, worth_an_event)

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Publish a preview to the present listeners; it is not kept."""
        try:
            publish_preview(self._redis, claim.job_id, preview)
        except RedisError as error:
            log.warning("report_lost", **claim.ids, error=str(error))
