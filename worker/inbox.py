"""A worker's side of the queue: takes jobs, and writes what became of them, each exactly once."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from uuid import uuid4

import structlog
from prometheus_client import CollectorRegistry
from redis.client import Pipeline, PubSub, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import worker_registration
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from jobs import books, keys
from jobs.errors import FailureKind
from jobs.events import EventKind, Preview, publish, publish_preview, publish_progress
from jobs.fleet import announce_pipelines, announce_worker, withdraw_worker
from jobs.job import ImageRecord, JobStatus, Progress, Usage
from jobs.ledger import Ledger
from jobs.pipelines import PipelineInfo
from jobs.record import BadPayloadError, Record
from jobs.request import ResolvedRequest
from jobs.settings import Settings
from jobs.workers import WorkerInfo
from worker.queue_metrics import QueueMetrics

log = structlog.get_logger("worker.inbox")

REDIS_AWAY = (RedisConnectionError, RedisTimeoutError)
PROGRESS_SECONDS = 0.25  # between two reports of one job
PROGRESS_FRACTION = 0.005  # between two progress events, which are kept, of one job


@dataclass(frozen=True)
class Claim:
    """The right to run one job and write its results, as long as its token stands in the job."""

    job_id: str
    token: str
    request: ResolvedRequest
    attempt: int
    alone: bool  # two workers died with it in flight: run nothing beside it
    class_name: str | None
    created_at: float


@dataclass(frozen=True)
class Submit:
    claim: Claim


@dataclass(frozen=True)
class Cancel:
    job_id: str


@dataclass
class Reported:
    """What was last told of a claim's progress."""

    at: float = float("-inf")
    fraction: float = float("-inf")


class RqWorker(BaseWorker):
    """Registers the worker where RQ's tools look for it; runs nothing."""

    def _set_connection(self, connection: Redis) -> Redis:
        return connection  # RQ would raise the timeout of every connection of the pool to its own


class Inbox:
    """One worker's inbox. Not for several threads, except for `progress` and `preview`, which may lose a report.

    What writes results waits for a Redis that is away as long as a lease lasts; after that the claim is lost anyway.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        worker_name: str,
        pipelines: Sequence[PipelineInfo],
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._redis, self._settings, self._name, self._pipelines = redis, settings, worker_name, tuple(pipelines)
        self._ledger = Ledger(redis, settings.retention_seconds)
        self._metrics = QueueMetrics(CollectorRegistry() if registry is None else registry)
        self._in_flight: dict[str, Claim] = {}  # by job
        self._reported: dict[str, Reported] = {}
        self._next_pipeline = 0
        names = [keys.queue(each.id, priority) for priority in keys.PRIORITIES for each in self._pipelines]
        self._rq = RqWorker(
            names, name=worker_name, connection=redis, serializer=JSONSerializer, worker_ttl=settings.lease_seconds
        )
        self._pubsub: PubSub = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call] # untyped there

    def open(self) -> None:
        """Announce the pipelines and the worker; take back the jobs that an earlier process of this name held.

        The caller holds the file lock of the worker's name, so whoever held them is dead.
        """
        self._pubsub.subscribe(keys.WAKE_CHANNEL, PUBSUB_CHANNEL_TEMPLATE % self._name)
        for each in cast(set[bytes], self._redis.smembers(books.executions_key(self._name))):
            job_id, _, token = each.decode().partition(":")
            log.info("recovering", job_id=job_id, worker=self._name)
            self._ledger.recover(job_id, token)
            self._redis.srem(books.executions_key(self._name), each)
        self._ledger.recover_expired_leases()
        self._redis.delete(self._rq.key)  # a killed worker's, which RQ would take for a living namesake
        self._rq.register_birth()  # type: ignore[no-untyped-call] # RQ leaves it untyped
        self._rq.set_state(WorkerStatus.IDLE)
        with self._redis.pipeline() as pipe:
            announce_pipelines(pipe, self._pipelines)
            pipe.execute()

    def poll(self, *, room: int, wait_seconds: float) -> list[Submit | Cancel]:
        """Take jobs for so many images more, high priority first, and read cancellations.

        A job whose images do not fit waits, and what is behind it with it, so that nothing starves; one that could
        never fit enters as soon as there is any room. Waits only if there is nothing to tell.
        """
        deadline = time.monotonic() + wait_seconds
        commands: list[
            Submit | Cancel
        ] = []  # filled in place: what was claimed must be told though Redis then goes away
        try:
            commands += self._messages(0)
            self._take(room, commands)
            while not commands and (left := deadline - time.monotonic()) > 0:
                commands += self._messages(left)
                self._take(room, commands)
        except REDIS_AWAY as error:
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
        except REDIS_AWAY as error:
            log.warning("redis_away", error=str(error))
            return []

    def _beat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
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
            answers = pipe.execute()[:written]
        dropped = []
        for each, (token, cancel) in zip(claims, answers[1::2], strict=True):
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
        last, now = self._reported.get(claim.token), time.monotonic()
        if last is None or now - last.at < PROGRESS_SECONDS:
            return
        last.at = now
        worth_an_event = progress.fraction - last.fraction >= PROGRESS_FRACTION
        last.fraction = progress.fraction if worth_an_event else last.fraction
        try:
            with self._redis.pipeline() as pipe:
                pipe.set(keys.progress(claim.job_id), progress.model_dump_json(), ex=self._settings.lease_seconds)
                if worth_an_event:
                    publish_progress(pipe, claim.job_id, progress)
                pipe.execute()
        except REDIS_AWAY as error:
            log.warning("redis_away", error=str(error))

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Show a preview to who listens just now. May be lost."""
        try:
            publish_preview(self._redis, claim.job_id, preview)
        except REDIS_AWAY as error:
            log.warning("redis_away", error=str(error))

    def image_ready(self, claim: Claim, image: ImageRecord) -> bool:
        """Publish a stored image before its job is completed; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            images = [each for each in record.images if each.index != image.index] + [image]
            images.sort(key=lambda each: each.index)
            pipe.hset(books.job_key(record.id), "adm_images", json.dumps([each.model_dump() for each in images]))
            self._publish_image(pipe, record, claim, image)
            return True

        return self._fenced(claim, write, repeated=None)

    def complete(self, claim: Claim, images: Sequence[ImageRecord], usage: Usage, numerics: str) -> bool:
        """Complete a job whose images are all stored; False when the claim was lost or the job was cancelled."""

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
                return False
            published = {(each.index, each.execution_id) for each in record.images}
            for each in images:
                if (each.index, each.execution_id) not in published:
                    self._publish_image(pipe, record, claim, each)
            self._ledger.complete(pipe, record, images, usage, numerics)
            return True

        completed = self._fenced(claim, write, repeated=JobStatus.COMPLETED)
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
                self._ledger.retry_or_fail(pipe, record, kind, detail)
            else:
                self._ledger.fail(pipe, record, kind, detail)
            return True

        written = self._fenced(claim, write, repeated=JobStatus.FAILED)
        if written and retry:
            self._metrics.requeued.labels(claim.request.model, "retry").inc()
        self._finish(claim, JobStatus.FAILED if written and not retry else None)
        return written

    def cancelled(self, claim: Claim) -> bool:
        """Tell that a job left the batch because it was cancelled; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            self._ledger.cancel(pipe, record)
            return True

        written = self._fenced(claim, write, repeated=JobStatus.CANCELLED)
        self._finish(claim, JobStatus.CANCELLED if written else None)
        return written

    def give_back(self, claim: Claim) -> bool:
        """Put a job back to the front of its queue, at no cost to it; False when the claim was lost."""

        def write(pipe: Pipeline, record: Record) -> bool:
            if record.cancel_requested:
                self._ledger.cancel(pipe, record)
            else:
                self._ledger.requeue(pipe, record)
            return True

        written = self._fenced(claim, write, repeated=JobStatus.QUEUED)
        if written:
            self._metrics.requeued.labels(claim.request.model, "given back").inc()
        self._finish(claim, None)
        return written

    def close(self) -> None:
        """Unregister. What is still in flight is found again when the lease ends, or at the next `open`."""
        self._pubsub.close()
        with self._redis.pipeline() as pipe:
            withdraw_worker(pipe, self._name)
            worker_registration.unregister(self._rq, pipe)
            pipe.delete(self._rq.key)
            pipe.execute()

    def _messages(self, wait_seconds: float) -> list[Cancel]:
        """Read what came in; with a wait, return after the first message."""
        cancels = []
        while message := self._pubsub.get_message(timeout=wait_seconds):
            wait_seconds = 0
            if message["channel"] != keys.WAKE_CHANNEL.encode():
                command = json.loads(message["data"])
                if command.get("command") == "stop-job" and command.get("job_id") in self._in_flight:
                    cancels.append(Cancel(command["job_id"]))
        return cancels

    def _take(self, room: int, commands: list[Submit | Cancel]) -> None:
        while room > 0 and not any(each.alone for each in self._in_flight.values()):
            head = self._head()
            if head is None:
                break
            fits, claim = self._try_to_claim(*head, room)
            if not fits:
                break
            if claim is not None:
                commands.append(Submit(claim))
                room -= claim.request.n

    def _head(self) -> tuple[str, str] | None:
        """The queue to take from next and the job that is first in it; pipelines of one priority take turns."""
        turn = self._next_pipeline % len(self._pipelines)
        order = self._pipelines[turn:] + self._pipelines[:turn]
        queues = [keys.queue(each.id, priority) for priority in keys.PRIORITIES for each in order]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lindex(books.queue_key(queue), 0)
            heads = pipe.execute()
        return next(((queue, head.decode()) for queue, head in zip(queues, heads, strict=True) if head), None)

    def _try_to_claim(self, queue: str, job_id: str, room: int) -> tuple[bool, Claim | None]:
        """Claim a job, or drop it from the queue if it is not to be run; (False, None) if it must wait for room.

        Whoever changed the job meanwhile, a cancel or another worker, makes the transaction run again.
        """

        def decide(pipe: Pipeline, record: Record | None) -> tuple[bool, Claim | None]:
            if record is None or record.status is not JobStatus.QUEUED or record.queue != queue:
                pipe.lrem(books.queue_key(queue), 1, job_id)
                return True, None
            if record.attempt == 0 and time.time() > record.expires_at > 0:
                self._ledger.expire(pipe, record)
                return True, None
            try:
                request = record.request()
            except BadPayloadError as error:
                log.warning("bad_payload", job_id=job_id, error=str(error))
                self._ledger.fail(pipe, record, FailureKind.BAD_PAYLOAD, str(error))
                return True, None
            if (record.runs_alone and self._in_flight) or room < request.n <= self._settings.max_rows:
                return False, None
            token = uuid4().hex
            self._ledger.claim(pipe, record, self._name, token, time.time() + self._settings.lease_seconds)
            class_name = record.text("adm_class_name") or None
            return True, Claim(
                job_id, token, request, record.attempt + 1, record.runs_alone, class_name, record.created_at
            )

        fits, claim = self._ledger.change(job_id, decide)
        if claim is not None:
            if (stale := self._in_flight.get(job_id)) is not None:
                self._release(stale)
            self._in_flight[job_id] = claim
            self._reported[claim.token] = Reported()
            self._next_pipeline += 1
            if claim.attempt == 1:
                waited = max(0.0, time.time() - claim.created_at)
                self._metrics.waited.labels(claim.request.model, claim.request.priority).observe(waited)
            log.info("claimed", job_id=job_id, attempt=claim.attempt, alone=claim.alone)
        return fits, claim

    def _fenced(self, claim: Claim, write: Callable[[Pipeline, Record], bool], repeated: JobStatus | None) -> bool:
        """Write if the claim still stands. `repeated`: the status that says this very write went through before,
        and only its answer was lost."""

        def decide(pipe: Pipeline, record: Record | None) -> bool:
            if record is None or record.token != claim.token:
                self._metrics.fenced.inc()
                return False
            if record.status.is_final:
                return record.status is repeated
            return write(pipe, record)

        patiently = Retrying(
            retry=retry_if_exception_type(REDIS_AWAY),
            wait=wait_exponential(multiplier=0.05, max=1),
            stop=stop_after_delay(self._settings.lease_seconds),
            reraise=True,
        )
        written: bool = patiently(self._ledger.change, claim.job_id, decide)
        return written

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
        self._reported.pop(claim.token, None)
