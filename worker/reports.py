"""What a worker tells while it works: progress and previews, neither of them worth waiting for Redis."""

import time
from dataclasses import dataclass

import structlog
from redis.client import Redis
from redis.exceptions import RedisError

from jobs.contract.job import Progress
from jobs.queue.events import Preview, ProgressPublisher, ProgressReport, publish_preview
from worker.taking import Claim

log = structlog.get_logger("worker.reports")

PROGRESS_SECONDS = 0.25  # between two reports of one job
PROGRESS_FRACTION = 0.005  # between two progress events, which are kept, of one job


@dataclass
class Reported:
    """What was last told of a claim's progress."""

    at: float = float("-inf")
    fraction: float = float("-inf")


class Reports:
    """Reports of one worker's claims."""

    def __init__(self, redis: Redis, lease_seconds: int) -> None:
        self._redis, self._publisher = redis, ProgressPublisher(redis, lease_seconds)
        self._reported: dict[str, Reported] = {}  # by token

    def begin(self, claim: Claim) -> None:
        self._reported[claim.token] = Reported()

    def end(self, claim: Claim) -> None:
        """Tell nothing more of a claim."""
        self._reported.pop(claim.token, None)

    def progress(self, *told: tuple[Claim, Progress]) -> None:
        """Tell how far the jobs of a step are; called as often as one likes, passed on a few times a second.

        All steps of a job that runs alone: the one at which its worker dies is evidence (`jobs.queue.deaths`).
        All in one answer: every write is on a disk before its answer, and the next step waits for that.
        """
        now = time.monotonic()
        if not (due := [self._note(last, *each, now) for each in told if (last := self._due(each[0], now))]):
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
        """Show a preview to who listens just now."""
        try:
            publish_preview(self._redis, claim.job_id, preview)
        except RedisError as error:
            log.warning("report_lost", **claim.ids, error=str(error))
