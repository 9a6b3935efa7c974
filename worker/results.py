"""Writing what became of claimed jobs, each result exactly once."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from redis.client import Pipeline, Redis
from redis.exceptions import RedisError

from jobs.contract.errors import FailureKind
from jobs.contract.job import CheckpointRecord, ImageRecord, JobStatus, Progress, Usage
from jobs.queue import rq_registries
from jobs.queue.availability import is_away
from jobs.queue.events import EventKind, Preview, publish
from jobs.queue.ledger import Ledger
from jobs.queue.record import Record
from jobs.settings import Settings
from worker.job_spans import RELEASED, JobSpans
from worker.queue_metrics import QueueMetrics
from worker.reports import Reports
from worker.stopping import Stopping
from worker.taking import Claim

log = structlog.get_logger("worker.results")

REPEAT_SECONDS = 0.2  # between two attempts to write a result while Redis is away


class Results:
    """The claims of one worker in flight, and what is told and written of them.

    What writes results waits for a Redis that is away, as long as a lease lasts all in all, and once told to stop no
    longer than the drain; then the claim counts as lost, and the lease gives the job to others.
    """

    def __init__(
        self, redis: Redis, settings: Settings, registry: CollectorRegistry, stopping: Stopping, spans: JobSpans
    ) -> None:
        self.spans = spans
        self._redis, self._settings, self._stopping = redis, settings, stopping
        self._ledger = Ledger(redis, settings.retention_seconds, settings.worker_deaths_alone)
        self._metrics = QueueMetrics(registry)
        self._in_flight: dict[str, Claim] = {}  # by job
        self._reports = Reports(redis, settings.lease_seconds)
        self._away_since: float | None = None  # Redis, to what writes results

    def progress(self, *told: tuple[Claim, Progress]) -> None:
        """Tell how far jobs are; called as often as one likes, passed on a few times a second. May be lost."""
        self._reports.progress(*told)

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Show a preview to who listens just now. May be lost."""
        self._reports.preview(claim, preview)

    def image_ready(self, claim: Claim, image: ImageRecord) -> bool:
        """Publish a stored image before its job is completed; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            images = [each for each in record.images if each.index != image.index] + [image]
            images.sort(key=lambda each: each.index)
            pipe.hset(
                rq_registries.job_key(record.id), "adm_images", json.dumps([each.model_dump() for each in images])
            )
            self._publish_image(pipe, record, claim, image)
            return True

        published = self._fenced(claim, write)
        if not published:
            self._finish(claim, None)  # or the next heartbeat would go on holding what nobody works at
        return published

    def checkpointed(self, claim: Claim, checkpoint: CheckpointRecord, reached: Progress) -> bool:
        """Name what a next attempt may go on from, and where the job stands in it; False when the claim was lost.

        May be lost: nobody waits for it.
        """
        try:
            return self._ledger.note_checkpoint(claim.job_id, claim.token, checkpoint, reached)
        except RedisError as error:
            log.warning("checkpoint_not_named", **claim.ids, error=str(error))
            return False

    def complete(
        self,
        claim: Claim,
        images: Sequence[ImageRecord],
        usage: Usage,
        numerics: str,
        results: dict[str, Any] | None = None,
    ) -> bool:
        """Complete a job whose images are all stored; False when the claim was lost or the job was cancelled.

        `results` is what it found that is not an image, fit for JSON.
        """

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
                return False
            published = {(each.index, each.execution_id) for each in record.images}
            for each in images:
                if (each.index, each.execution_id) not in published:
                    self._publish_image(pipe, record, claim, each)
            self._ledger.complete(pipe, record, images, usage, numerics, results)
            return True

        completed = self._fenced(claim, write, JobStatus.COMPLETED)
        if completed:
            self._metrics.images.labels(claim.request.model).inc(len(images))
        self.spans.used(claim, usage)
        self._finish(claim, JobStatus.COMPLETED if completed else None)
        return completed

    def fail(self, claim: Claim, kind: FailureKind, detail: str, *, retry: bool) -> bool:
        """Fail a job, or spend one of its retries; False when the claim was lost."""

        became = JobStatus.QUEUED if retry else JobStatus.FAILED  # also where only the answer of the write was lost

        def write(pipe: Pipeline, record: Record) -> bool:
            nonlocal became
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
                became = JobStatus.CANCELLED
            elif retry:
                became = self._ledger.retry_or_fail(pipe, record, kind, detail, adm_given_back_by=claim.token)
            else:
                self._ledger.fail(pipe, record, kind, detail)
            return True

        written = self._fenced(claim, write, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED)
        if written and became is JobStatus.QUEUED:
            self._metrics.requeued.labels(claim.request.model, "retry").inc()
        self._finish(claim, became if written and became.is_final else None)
        return written

    def cancelled(self, claim: Claim) -> bool:
        """Tell that a job left the batch because it was cancelled; False when the claim was lost, or nobody asked.

        A message to stop is no proof: it may come late and mean an earlier job of the same idempotency key. Where the
        job itself does not say so, it goes back to the front of its queue at no cost.
        """

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
            else:
                self._ledger.requeue(pipe, record)
            return record.cancel_requested

        written = self._fenced(claim, write, JobStatus.CANCELLED)
        self._finish(claim, JobStatus.CANCELLED if written else None)
        return written

    def give_back(self, claim: Claim) -> bool:
        """Put a job back to the front of its queue, at no cost to it; False when the claim was lost."""

        became = JobStatus.QUEUED

        def write(pipe: Pipeline, record: Record) -> bool:
            nonlocal became
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
                became = JobStatus.CANCELLED
            else:
                self._ledger.requeue(pipe, record, adm_given_back_by=claim.token)
            return True

        written = self._fenced(claim, write, JobStatus.QUEUED, JobStatus.CANCELLED)
        if written and became is JobStatus.QUEUED:
            self._metrics.requeued.labels(claim.request.model, "given back").inc()
        self._finish(claim, became if written and became.is_final else None)
        return written

    def _fenced(self, claim: Claim, write: Callable[[Pipeline, Record], bool], *repeated: JobStatus) -> bool:
        """Write if the claim still stands. `repeated`: the statuses that say that this very write went through before,
        and only its answer was lost. False too when Redis stays away: the lease then gives the job to others."""

        def decide(pipe: Pipeline, record: Record | None) -> bool:
            if record is not None and JobStatus.QUEUED in repeated and record.given_back_by == claim.token:
                return True
            if record is None or record.token != claim.token:
                self._metrics.fenced.inc()
                return False
            if record.status.is_final:
                return record.status in repeated
            return write(pipe, record)

        while True:
            try:
                written = self._ledger.change(claim.job_id, decide)
                self._away_since = None
                return written
            except RedisError as error:
                if not is_away(error):
                    raise
                self._metrics.redis_unavailable.inc()
                now = time.monotonic()
                self._away_since = now if self._away_since is None else self._away_since
                drained_by = self._stopping.asked_at + self._settings.drain_seconds
                if now > min(self._away_since + self._settings.lease_seconds, drained_by):
                    log.warning("given_up", **claim.ids, error=str(error))
                    return False
                time.sleep(REPEAT_SECONDS)

    def _publish_image(self, pipe: Pipeline, record: Record, claim: Claim, image: ImageRecord) -> None:
        view = record.image_view(image, claim.request, self._settings.root_path)
        publish(pipe, record.id, EventKind.IMAGE, view.model_dump())

    def _finish(self, claim: Claim, status: JobStatus | None) -> None:
        """Forget a claim; `status` is how the job ended, if it did and by us."""
        self.spans.ended(claim, RELEASED if status is None else status.value)
        self._release(claim)
        if status is None:
            log.info("released", **claim.ids)
        else:
            took = max(0.0, self._ledger.now() - claim.created_at)
            self._metrics.took.labels(claim.request.model, status.value).observe(took)
            log.info("ended", **claim.ids, status=status.value, seconds=round(took, 3))

    def _release(self, claim: Claim) -> None:
        if self._in_flight.get(claim.job_id) is claim:
            del self._in_flight[claim.job_id]
        self._reports.end(claim)
        self.spans.ended(claim, RELEASED)  # where the claim was lost, and nothing was to be written
