"""A worker's side of the queue: takes jobs, and writes what became of them, each exactly once."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import structlog
from prometheus_client import CollectorRegistry
from redis.client import Pipeline, PubSub, Redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from jobs import books, keys
from jobs.away import is_away
from jobs.errors import FailureKind
from jobs.events import EventKind, Preview, publish
from jobs.fleet import announce_pipelines, announce_worker, withdraw_worker
from jobs.job import CheckpointRecord, ImageRecord, JobStatus, Progress, Usage
from jobs.ledger import Ledger
from jobs.pipelines import PipelineInfo
from jobs.record import Record
from jobs.rubbish import EXECUTION, answers, matched
from jobs.settings import Settings
from jobs.workers import WorkerInfo
from worker.namesake import Process, keep_name, take_name
from worker.queue_metrics import QueueMetrics
from worker.reports import Reports
from worker.taking import Cancel, Claim, Submit, Taker, WouldRun

log = structlog.get_logger("worker.inbox")

__all__ = ["Cancel", "Claim", "Inbox", "Submit"]

REPEAT_SECONDS = 0.2  # between two attempts to write a result while Redis is away


class RqWorker(BaseWorker):
    """Registers the worker where RQ's tools look for it; runs nothing."""

    def _set_connection(self, connection: Redis) -> Redis:
        return connection  # RQ would raise the timeout of every connection of the pool to its own


class Inbox:
    """One worker's inbox. Not for several threads, except for `progress` and `preview`, which may lose a report.

    What writes results waits for a Redis that is away, as long as a lease lasts all in all; then the claim counts as
    lost, and the lease gives the job to others.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        worker_name: str,
        pipelines: Sequence[PipelineInfo],
        registry: CollectorRegistry | None = None,
        process: Process | None = None,
    ) -> None:
        self._redis, self._settings, self._name, self._pipelines = redis, settings, worker_name, tuple(pipelines)
        self._ledger = Ledger(redis, settings.retention_seconds)
        self._metrics = QueueMetrics(CollectorRegistry() if registry is None else registry)
        self._taker = Taker(redis, self._ledger, settings, worker_name, self._pipelines, self._metrics)
        self._in_flight: dict[str, Claim] = {}  # by job
        self._reports = Reports(redis, settings.lease_seconds)
        self._process = process or Process.current()
        self._away_since: float | None = None  # Redis, to what writes results
        self._rq: RqWorker  # made by `open`: making one asks Redis
        self._queues_changed = True  # since the last look beyond their heads
        self._pubsub: PubSub = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call] # untyped there

    def open(self) -> None:
        """Announce the pipelines and the worker; take back the jobs that an earlier process of this name held.

        Raises: SettingsError while a living worker has the name.
        """
        take_name(self._redis, self._name, self._process, self._settings.lease_seconds)
        names = [keys.queue(each.id, priority) for priority in keys.PRIORITIES for each in self._pipelines]
        self._rq = RqWorker(
            names,
            name=self._name,
            connection=self._redis,
            serializer=JSONSerializer,
            worker_ttl=self._settings.lease_seconds,
        )
        channels = keys.WAKE_CHANNEL, PUBSUB_CHANNEL_TEMPLATE % self._name
        self._pubsub.subscribe(*channels)
        for _ in channels:  # a confirmation each, which would pass for the end of what there is to read
            self._pubsub.get_message(timeout=1)
        for each in cast(set[bytes], self._redis.smembers(books.executions_key(self._name))):
            if held := matched(EXECUTION, each):
                log.info("recovering", job_id=held[1], worker=self._name)
                self._ledger.recover(held[1], held[2])
            self._redis.srem(books.executions_key(self._name), each)
        self._ledger.recover_expired_leases()
        self._redis.delete(self._rq.key)  # a killed worker's, which RQ would take for a living namesake
        self._rq.register_birth()  # type: ignore[no-untyped-call] # RQ leaves it untyped
        self._rq.set_state(WorkerStatus.IDLE)
        with self._redis.pipeline() as pipe:
            announce_pipelines(pipe, self._pipelines)
            pipe.execute()

    def poll(
        self, *, room: int, wait_seconds: float, spare: int = 0, would_run: WouldRun = lambda *job: False
    ) -> list[Submit | Cancel]:
        """Take jobs for so many images more, high priority first, and read cancellations.

        A job whose images do not fit waits, and what is behind it with it, so that nothing starves; one that could
        never fit enters as soon as there is any room. Only jobs that `would_run` at once are let past, into `spare`.
        Waits only if there is nothing to tell.
        """
        deadline = time.monotonic() + wait_seconds
        commands: list[
            Submit | Cancel
        ] = []  # filled in place: what was claimed must be told though Redis then goes away
        try:
            commands += self._messages(0)
            self._take(room, spare, would_run, commands)
            while not commands and (left := deadline - time.monotonic()) > 0:
                commands += self._messages(left)
                self._take(room, spare, would_run, commands)
        except RedisError as error:
            if not is_away(error):
                raise
            # rows in flight need no Redis to go on, so the loop is not held up; one without rows must not spin
            log.warning("redis_away", error=str(error))
            if not commands:
                time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))
        return commands

    def heartbeat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        """Extend the leases of all claims, tell that the worker lives, recover what dead workers held.

        Returns the jobs that are to be dropped: their claim was lost, or somebody cancelled them. While Redis is away
        nothing is known of them, so none is dropped; nobody can take them over in that time either.
        """
        try:
            return self._beat(info, metrics_text)
        except RedisError as error:  # rows in flight go on; the lease decides how long
            log.warning("heartbeat_failed", error=str(error))
            return []

    def _beat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        keep_name(self._redis, self._name, self._process, self._settings.lease_seconds)
        claims = list(self._in_flight.values())
        lease_ends_at = time.time() + self._settings.lease_seconds
        with self._redis.pipeline() as pipe:
            for each in claims:
                pipe.zadd(keys.LEASES, {f"{each.job_id}:{each.token}": lease_ends_at}, xx=True)
                pipe.hmget(books.job_key(each.job_id), "adm_token", "adm_cancel")
            written = len(pipe)
            announce_worker(pipe, info, metrics_text, self._settings.lease_seconds)
            self._rq.heartbeat(pipeline=pipe)
            self._rq.set_state(WorkerStatus.BUSY if claims else WorkerStatus.IDLE, pipeline=pipe)
            worker_registration.register(self._rq, pipe)
            told = answers(pipe)[:written]
        self._away_since = None
        dropped = []
        for each, fields in zip(claims, told[1::2], strict=True):
            token, cancel = fields or (None, None)
            if token != each.token.encode():
                log.warning("claim_lost", job_id=each.job_id)
                self._release(each)
                dropped.append(each.job_id)
            elif cancel:
                dropped.append(each.job_id)
        self._ledger.recover_expired_leases()
        return dropped

    def progress(self, claim: Claim, progress: Progress) -> None:
        """Tell how far a job is; called as often as one likes, passed on a few times a second. May be lost."""
        self._reports.progress(claim, progress)

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Show a preview to who listens just now. May be lost."""
        self._reports.preview(claim, preview)

    def image_ready(self, claim: Claim, image: ImageRecord) -> bool:
        """Publish a stored image before its job is completed; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            images = [each for each in record.images if each.index != image.index] + [image]
            images.sort(key=lambda each: each.index)
            pipe.hset(books.job_key(record.id), "adm_images", json.dumps([each.model_dump() for each in images]))
            self._publish_image(pipe, record, claim, image)
            return True

        return self._fenced(claim, write)

    def checkpointed(self, claim: Claim, checkpoint: CheckpointRecord) -> bool:
        """Name what a next attempt may go on from; False when the claim was lost. May be lost: nobody waits for it."""
        try:
            return self._ledger.note_checkpoint(claim.job_id, claim.token, checkpoint)
        except RedisError as error:
            log.warning("checkpoint_not_named", job_id=claim.job_id, error=str(error))
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
        self._finish(claim, JobStatus.COMPLETED if completed else None)
        return completed

    def fail(self, claim: Claim, kind: FailureKind, detail: str, *, retry: bool) -> bool:
        """Fail a job, or spend one of its retries; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
            elif retry:
                self._ledger.retry_or_fail(pipe, record, kind, detail, adm_given_back_by=claim.token)
            else:
                self._ledger.fail(pipe, record, kind, detail)
            return True

        written = self._fenced(claim, write, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED)
        if written and retry:
            self._metrics.requeued.labels(claim.request.model, "retry").inc()
        self._finish(claim, JobStatus.FAILED if written and not retry else None)
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

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
            else:
                self._ledger.requeue(pipe, record, adm_given_back_by=claim.token)
            return True

        written = self._fenced(claim, write, JobStatus.QUEUED, JobStatus.CANCELLED)
        if written:
            self._metrics.requeued.labels(claim.request.model, "given back").inc()
        self._finish(claim, None)
        return written

    def close(self) -> None:
        """Unregister. What is still in flight is found again when the lease ends, or at the next `open`."""
        self._pubsub.close()
        try:
            with self._redis.pipeline() as pipe:
                withdraw_worker(pipe, self._name)
                worker_registration.unregister(self._rq, pipe)
                pipe.delete(self._rq.key, keys.worker_process(self._name))
                pipe.execute()
        except RedisError as error:
            log.warning("not_withdrawn", error=str(error))  # what was announced expires by itself

    def _messages(self, wait_seconds: float) -> list[Cancel]:
        """Read what came in; with a wait, return after the first message."""
        cancels = []
        while message := self._pubsub.get_message(timeout=wait_seconds):
            wait_seconds = 0
            if message["channel"] == keys.WAKE_CHANNEL.encode():
                self._queues_changed = True
            else:
                job_id = told_to_stop(message["data"])
                if job_id in self._in_flight:
                    cancels.append(Cancel(job_id))
        return cancels

    def _take(self, room: int, spare: int, would_run: WouldRun, commands: list[Submit | Cancel]) -> None:
        looking = spare if self._queues_changed else 0
        self._queues_changed = False
        for claim in self._taker.take(room, looking, would_run, self._in_flight):
            if (stale := self._in_flight.get(claim.job_id)) is not None:
                self._release(stale)
            self._in_flight[claim.job_id] = claim
            self._reports.begin(claim)
            commands.append(Submit(claim))

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
                now = time.monotonic()
                self._away_since = now if self._away_since is None else self._away_since
                if now - self._away_since > self._settings.lease_seconds:
                    log.warning("given_up", job_id=claim.job_id, error=str(error))
                    return False
                time.sleep(REPEAT_SECONDS)

    def _publish_image(self, pipe: Pipeline, record: Record, claim: Claim, image: ImageRecord) -> None:
        view = record.image_view(image, claim.request)
        publish(pipe, record.id, EventKind.IMAGE, view.model_dump())

    def _finish(self, claim: Claim, status: JobStatus | None) -> None:
        """Forget a claim; `status` is how the job ended, if it did and by us."""
        self._release(claim)
        if status is None:
            log.info("released", job_id=claim.job_id)
        else:
            took = max(0.0, time.time() - claim.created_at)
            self._metrics.took.labels(claim.request.model, status.value).observe(took)
            log.info("ended", job_id=claim.job_id, status=status.value, seconds=round(took, 3))

    def _release(self, claim: Claim) -> None:
        if self._in_flight.get(claim.job_id) is claim:
            del self._in_flight[claim.job_id]
            self._queues_changed = True
        self._reports.end(claim)


def told_to_stop(message: bytes) -> str:
    """The job that a message of RQ's command channel is to stop; "" for any other message."""
    try:
        command = json.loads(message)
    except (ValueError, RecursionError):
        return ""
    job_id = command.get("job_id") if isinstance(command, dict) and command.get("command") == "stop-job" else None
    return job_id if isinstance(job_id, str) else ""
