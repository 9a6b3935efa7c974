"""What a worker tells while it works: progress and previews, neither of them worth waiting for Redis."""

import time
from dataclasses import dataclass

import structlog
from redis.client import Redis
from redis.exceptions import RedisError

from jobs.events import Preview, ProgressPublisher, publish_preview
from jobs.job import Progress
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

    def progress(self, claim: Claim, progress: Progress) -> None:
        """Tell how far a job is; called as often as one likes, passed on a few times a second."""
        last, now = self._reported.get(claim.token), time.monotonic()
        if last is None or now - last.at < PROGRESS_SECONDS:
            return
        last.at = now
        worth_an_event = progress.fraction - last.fraction >= PROGRESS_FRACTION
        last.fraction = progress.fraction if worth_an_event else last.fraction
        try:
            self._publisher.publish(claim.job_id, claim.token, progress, as_event=worth_an_event)
        except RedisError as error:
            log.warning("report_lost", job_id=claim.job_id, error=str(error))

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Show a preview to who listens just now."""
        try:
            publish_preview(self._redis, claim.job_id, preview)
        except RedisError as error:
            log.warning("report_lost", job_id=claim.job_id, error=str(error))
