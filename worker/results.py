"""Writes the results of claimed jobs, each exactly once."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from redis.client import Pipeline as RedisPipeline
from redis.exceptions import RedisError

from jobs.contract.errors import FailureKind
from jobs.contract.job import CheckpointRecord, ImageRecord, JobStatus, Progress, Usage
from jobs.queue.availability import is_unavailable
from jobs.queue.events import EventKind, publish
from jobs.queue.ledger import Ledger
from jobs.redis import rq_keys
from jobs.redis.record import Record
from jobs.settings import Settings
from worker.claim import Claim
from worker.claiming import InFlight
from worker.job_spans import RELEASED, JobSpans
from worker.queue_metrics import QueueMetrics
from worker.stopping import Stopping

log = structlog.get_logger("worker.results")

REPEAT_SECONDS = 0.2  # between two attempts to write a result while Redis is unavailable


class Results:
    """Writes the results of one worker's claims.

    A write retries while Redis is unavailable, for at most one lease in total, and after a stop signal for at most
    ADM_DRAIN_SECONDS. Then the claim counts as lost, and the job is requeued when its lease ends.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        in_flight: InFlight,
        metrics: QueueMetrics,
        stopping: Stopping,
        spans: JobSpans,
    ) -> None:
        self._ledger, self._settings, self._in_flight, self._metrics = ledger, settings, in_flight, metrics
        self._stopping, self._spans = stopping, spans
        self._unavailable_since: float | None = None  # start of an outage of Redis, for writes of results

    def redis_answered(self) -> None:
        """Note that Redis is available, so that the next outage is tolerated for a whole lease."""
        self._unavailable_since = None

    def image_ready(self, claim: Claim, image: ImageRecord) -> bool:
        """Publish a stored image before its job is completed; False when the claim was lost."""

        def write(pipe: RedisPipeline, record: Record) -> bool:
            images = [each for each in record.images if each.index != image.index] + [image]
            images.sort(key=lambda each: each.index)
            pipe.hset(rq_keys.job_key(record.id), "adm_images", json.dumps([each.model_dump() for each in images]))
            self._publish_image(pipe, record, claim, image)
            return True

        published = self._fenced(claim, write)
        if not published:
            self._finish(claim, None)  # otherwise heartbeats would renew the lease of a job that nobody works on
        return published

    def checkpointed(self, claim: Claim, checkpoint: CheckpointRecord, reached: Progress) -> bool:
        """Write a checkpoint and its progress to the job's record; return False if the claim was lost.

        Not repeated if Redis is unavailable: no result depends on it.
        """
        try:
            return self._ledger.note_checkpoint(claim.job_id, claim.token, checkpoint, reached)
        except RedisError as error:
            log.warning("checkpoint_not_recorded", **claim.ids, error=str(error))
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

        `results`: JSON values of the results that are not images.
        """

        def write(pipe: RedisPipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.transitions.cancel(pipe, record)
                return False
            published = {(each.index, each.execution_id) for each in record.images}
            for each in images:
                if (each.index, each.execution_id) not in published:
                    self._publish_image(pipe, record, claim, each)
            self._ledger.transitions.complete(pipe, record, images, usage, numerics, results)
            return True

        completed = self._fenced(claim, write, JobStatus.COMPLETED)
        if completed:
            self._metrics.images.labels(claim.request.model).inc(len(images))
        self._spans.used(claim, usage)
        self._finish(claim, JobStatus.COMPLETED if completed else None)
        return completed

    def fail(self, claim: Claim, kind: FailureKind, detail: str, *, retry: bool) -> bool:
        """Fail a job, or spend one of its retries; False when the claim was lost."""

        # initial value: the status if an earlier call wrote the change and only Redis' answer was lost
        became = JobStatus.QUEUED if retry else JobStatus.FAILED

        def write(pipe: RedisPipeline, record: Record) -> bool:
            nonlocal became
            if record.cancel_requested:
                self._ledger.transitions.cancel(pipe, record)
                became = JobStatus.CANCELLED
            elif retry:
                became = self._ledger.transitions.retry_or_fail(
                    pipe, record, kind, detail, adm_given_back_by=claim.token
                )
            else:
                self._ledger.transitions.fail(pipe, record, kind, detail)
            return True

        written = self._fenced(claim, write, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED)
        if written and became is JobStatus.QUEUED:
            self._metrics.requeued.labels(claim.request.model, "retry").inc()
        self._finish(claim, became if written and became.is_final else None)
        return written

    def cancelled(self, claim: Claim) -> bool:
        """Cancel a job that has left the batch; return False if the claim was lost or the record requests no cancel.

        A message to stop proves nothing: it may be late, and meant for an earlier job with the same idempotency key. If
        the record does not request a cancel, the job is requeued at the front without spending a retry.
        """

        def write(pipe: RedisPipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.transitions.cancel(pipe, record)
            else:
                self._ledger.transitions.requeue(pipe, record)
            return record.cancel_requested

        written = self._fenced(claim, write, JobStatus.CANCELLED)
        self._finish(claim, JobStatus.CANCELLED if written else None)
        return written

    def requeue(self, claim: Claim) -> bool:
        """Requeue a job at the front of its queue, without spending a retry; return False if the claim was lost."""

        became = JobStatus.QUEUED

        def write(pipe: RedisPipeline, record: Record) -> bool:
            nonlocal became
            if record.cancel_requested:
                self._ledger.transitions.cancel(pipe, record)
                became = JobStatus.CANCELLED
            else:
                self._ledger.transitions.requeue(pipe, record, adm_given_back_by=claim.token)
            return True

        written = self._fenced(claim, write, JobStatus.QUEUED, JobStatus.CANCELLED)
        if written and became is JobStatus.QUEUED:
            self._metrics.requeued.labels(claim.request.model, "released").inc()
        self._finish(claim, became if written and became.is_final else None)
        return written

    def _fenced(self, claim: Claim, write: Callable[[RedisPipeline, Record], bool], *repeated: JobStatus) -> bool:
        """Write if the claim is still valid; return False if it is not, or if Redis stays unavailable.

        `repeated`: the statuses that show that this write had already succeeded and only its answer was lost.
        """

        def decide(pipe: RedisPipeline, record: Record | None) -> bool:
            if record is not None and JobStatus.QUEUED in repeated and record.requeued_by == claim.token:
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
                self._unavailable_since = None
                return written
            except RedisError as error:
                if not is_unavailable(error):
                    raise
                self._metrics.redis_unavailable.inc()
                now = time.monotonic()
                self._unavailable_since = now if self._unavailable_since is None else self._unavailable_since
                drained_by = self._stopping.asked_at + self._settings.drain_seconds
                if now > min(self._unavailable_since + self._settings.lease_seconds, drained_by):
                    log.warning("given_up", **claim.ids, error=str(error))
                    return False
                time.sleep(REPEAT_SECONDS)

    def _publish_image(self, pipe: RedisPipeline, record: Record, claim: Claim, image: ImageRecord) -> None:
        publish(pipe, record.id, EventKind.IMAGE, record.image_facts(image, claim.request))

    def _finish(self, claim: Claim, status: JobStatus | None) -> None:
        """Release a claim; `status`: the job's final status if this worker wrote it, else None."""
        self._spans.ended(claim, RELEASED if status is None else status.value)
        self._in_flight.release(claim)
        if status is None:
            log.info("released", **claim.ids)
        else:
            took = max(0.0, self._ledger.now() - claim.created_at)
            self._metrics.took.labels(claim.request.model, status.value).observe(took)
            log.info("ended", **claim.ids, status=status.value, seconds=round(took, 3))
