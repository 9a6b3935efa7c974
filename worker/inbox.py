"""A worker's side of the queue: claims jobs, renews their leases by heartbeats, and writes their results."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import cast

import structlog
from prometheus_client import CollectorRegistry
from redis.client import Pipeline as RedisPipeline
from redis.client import PubSub, Redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import Sweep
from jobs.contract.workers import WorkerInfo
from jobs.queue.announcements import announce_pipelines, announce_worker, withdraw_worker
from jobs.queue.availability import is_unavailable
from jobs.queue.ledger import Ledger
from jobs.redis import keys, rq_keys
from jobs.redis.replies import answers, matched
from jobs.redis.server import check_server
from jobs.settings import Settings
from vocabulary.priorities import PRIORITIES
from worker.claim import Cancel, Claim, Submit, WouldRun
from worker.claiming import Claimer, InFlight
from worker.job_spans import JobSpans
from worker.name import Name
from worker.queue_metrics import QueueMetrics
from worker.reports import Reports
from worker.results import REPEAT_SECONDS, Results
from worker.stopping import Stopping

log = structlog.get_logger("worker.inbox")


class RqWorker(BaseWorker):
    """Registers the worker where RQ's tools look for it; runs nothing."""

    def _set_connection(self, connection: Redis) -> Redis:
        return connection  # RQ would raise the timeout of every connection of the pool to its own

    def _set_ip_address(self, connection: Redis) -> None:
        try:
            super()._set_ip_address(connection)
        except ValueError:  # of redis-py, which cannot parse a socket's path that has a space or a "=" in CLIENT INFO
            self.ip_address = "unknown"


class Inbox:
    """Claims jobs for one worker and renews their leases by heartbeats. For one thread, except `extend`.

    `results` writes the ends of jobs; `reports` publishes their progress.
    """

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        name: Name,
        pipelines: Sequence[PipelineInfo],
        registry: CollectorRegistry | None = None,
        stopping: Stopping | None = None,
        spans: JobSpans | None = None,
        sweeps: Sequence[Sweep] = (),
    ) -> None:
        self._redis, self._settings, self.spans = redis, settings, spans or JobSpans()
        self._ledger = Ledger(redis, settings.retention_seconds, settings.worker_deaths_alone)
        self._metrics = QueueMetrics(CollectorRegistry() if registry is None else registry)
        self.reports = Reports(redis, settings.lease_seconds)
        self._in_flight = InFlight(self.reports, self.spans)
        self.results = Results(
            self._ledger, settings, self._in_flight, self._metrics, stopping or Stopping(), self.spans
        )
        self._owned, self._name, self._pipelines, self._sweeps = name, name.text, tuple(pipelines), tuple(sweeps)
        self._claimer = Claimer(
            redis, self._ledger, settings, self._name, self._pipelines, self._in_flight, self._metrics
        )
        self._rq: RqWorker  # made by `open`, because its constructor calls Redis
        self._queues_changed = True  # since the last look past their heads
        self._pubsub: PubSub = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call] # untyped there

    def open(self) -> None:
        """Announce the pipelines and the worker; recover the jobs of an earlier process with this name.

        Raises: SettingsError if a living worker has the name, or Redis is too old.
        """
        check_server(self._redis)
        self._owned.take(self._redis, self._settings.lease_seconds)
        channels = keys.WAKE_CHANNEL, PUBSUB_CHANNEL_TEMPLATE % self._name
        self._pubsub.subscribe(*channels)
        for _ in channels:  # read the confirmation of each; `_messages` would take it for the end of the messages
            self._pubsub.get_message(timeout=1)
        for each in cast(set[bytes], self._redis.smembers(rq_keys.executions_key(self._name))):
            if execution := matched(keys.EXECUTION, each):
                log.info("recovering", job_id=execution[1], worker=self._name)
                self._ledger.recover(execution[1], execution[2])
            self._redis.srem(rq_keys.executions_key(self._name), each)
        self._ledger.recover_expired_leases()
        self._ledger.enqueue_due()
        self._register()

    def offer(self, pipelines: Sequence[PipelineInfo], sweeps: Sequence[Sweep]) -> None:
        """Announce other pipelines and their sweeps; from now on jobs are claimed from their queues."""
        with self._redis.pipeline() as pipe:
            worker_registration.unregister(self._rq, pipe)
            pipe.execute()
        self._pipelines, self._sweeps = tuple(pipelines), tuple(sweeps)
        self._claimer.pipelines = self._pipelines
        self._register()

    def _register(self) -> None:
        """Register with RQ's tools for the queues of the pipelines, and announce these."""
        names = [keys.queue(each.id, priority) for priority in PRIORITIES for each in self._pipelines]
        self._rq = RqWorker(
            names,
            name=self._name,
            connection=self._redis,
            serializer=JSONSerializer,
            worker_ttl=self._settings.lease_seconds,
        )
        self._redis.delete(self._rq.key)  # left by a killed worker; RQ would take it for a living one with this name
        self._rq.register_birth()  # type: ignore[no-untyped-call] # RQ leaves it untyped
        self._rq.set_state(WorkerStatus.IDLE)
        with self._redis.pipeline() as pipe:
            announce_pipelines(pipe, self._pipelines, self._sweeps)
            pipe.execute()

    def poll(
        self, *, room: int, wait_seconds: float, spare: int = 0, would_run: WouldRun = lambda *job: False
    ) -> list[Submit | Cancel]:
        """Claim jobs for up to `room` more images, and read cancellations.

        High priority goes first, except at every 16th claim.

        A job whose images do not fit waits, and so do the jobs behind it, so that no job starves. A job with more
        than max_rows images enters as soon as there is any room. Only jobs that `would_run` accepts may pass, into
        `spare`. Waits only if there is nothing to return.
        """
        deadline = time.monotonic() + wait_seconds
        # filled in place, so that claims already made are returned even if Redis becomes unavailable after them
        commands: list[Submit | Cancel] = []
        try:
            commands += self._messages(0)
            self._claim(room, spare, would_run, commands)
            while not commands and (left := deadline - time.monotonic()) > 0:
                commands += self._messages(left)
                self._claim(room, spare, would_run, commands)
        except RedisError as error:
            if not is_unavailable(error):
                raise
            self._metrics.redis_unavailable.inc()
            log.warning("redis_unavailable", error=str(error))
            if not commands:  # delays nobody: the engine runs on, and results could not be written either
                time.sleep(max(REPEAT_SECONDS, min(1.0, deadline - time.monotonic())))
        return commands

    def heartbeat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        """Extend the leases of all claims, renew the worker's announcement, and recover jobs of dead workers.

        Returns the jobs to drop: those whose claim was lost and those that were cancelled. While Redis is unavailable,
        no job is dropped: no other worker can claim it in that time either.
        """
        try:
            return self._beat(info, metrics_text)
        except RedisError as error:  # images in flight continue until their lease ends
            self._metrics.redis_unavailable.inc()
            log.warning("heartbeat_failed", error=str(error))
            return []

    def _beat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        self._owned.keep(self._redis, self._settings.lease_seconds)
        claims = list(self._in_flight.claims.values())
        with self._redis.pipeline() as pipe:
            for each in claims:
                pipe.hmget(rq_keys.job_key(each.job_id), "adm_token", "adm_cancel")
            self._extend(pipe, claims)
            # dated now, because Redis may have been unavailable since `info` was made
            announcement = info.model_copy(update={"last_heartbeat": self._ledger.now()})
            announce_worker(pipe, announcement, metrics_text, self._settings.lease_seconds)
            for pipeline in self._pipelines:  # present already, unless it was retired or Redis has lost its data
                pipe.hsetnx(keys.PIPELINES, pipeline.id, pipeline.model_dump_json())
            self._rq.set_state(WorkerStatus.BUSY if claims else WorkerStatus.IDLE, pipeline=pipe)
            worker_registration.register(self._rq, pipe)
            records = answers(pipe)[: len(claims)]
        self.results.redis_answered()
        dropped = []
        for each, fields in zip(claims, records, strict=True):
            token, cancel = fields or (None, None)
            if token != each.token.encode():
                log.warning("claim_lost", job_id=each.job_id)
                self._in_flight.release(each)
                dropped.append(each.job_id)
            elif cancel:
                dropped.append(each.job_id)
        self._ledger.recover_expired_leases()
        self._ledger.enqueue_due()
        return dropped

    def extend(self) -> None:
        """Extend the leases of all claims and the worker's keys, while the loop has no time for a heartbeat.

        For any thread. A claim that was lost meanwhile stays lost; the next heartbeat reports it.
        """
        claims = self._in_flight.claims.copy().values()  # a copy, because the loop may change it meanwhile
        try:
            with self._redis.pipeline() as pipe:
                self._extend(pipe, claims)
                for key in (keys.worker, keys.worker_metrics, keys.worker_process):
                    pipe.expire(key(self._name), self._settings.lease_seconds)
                answers(pipe)
        except RedisError as error:
            log.warning("not_extended", error=str(error))

    def _extend(self, pipe: RedisPipeline, claims: Iterable[Claim]) -> None:
        lease_seconds = self._settings.lease_seconds
        ends_at = self._ledger.now() + lease_seconds
        for each in claims:
            pipe.zadd(keys.LEASES, {f"{each.job_id}:{each.token}": ends_at}, xx=True)
            pipe.expire(keys.progress(each.job_id), lease_seconds, gt=True)  # gt: not for a job that just ended
        self._rq.heartbeat(pipeline=pipe)

    def close(self) -> None:
        """Unregister. Jobs that are still in flight are recovered when their lease ends, or at the next `open`."""
        self._pubsub.close()
        try:
            with self._redis.pipeline() as pipe:
                withdraw_worker(pipe, self._name)
                worker_registration.unregister(self._rq, pipe)
                pipe.delete(self._rq.key, keys.worker_process(self._name))
                pipe.execute()
        except RedisError as error:
            log.warning("not_withdrawn", error=str(error))  # the announcement expires by itself

    def _messages(self, wait_seconds: float) -> list[Cancel]:
        """Read cancellations; with a wait, return after the first message."""
        cancels = []
        while message := self._pubsub.get_message(timeout=wait_seconds):
            wait_seconds = 0
            if message["channel"] == keys.WAKE_CHANNEL.encode():
                self._queues_changed = True
            else:
                job_id = job_to_stop(message["data"])
                if job_id in self._in_flight.claims:
                    cancels.append(Cancel(job_id))
        return cancels

    def _claim(self, room: int, spare: int, would_run: WouldRun, commands: list[Submit | Cancel]) -> None:
        looking = spare if self._queues_changed or self._in_flight.has_released else 0
        self._queues_changed = self._in_flight.has_released = False
        commands += map(Submit, self._claimer.claim(room, looking, would_run))  # keeps the claims before an error


def job_to_stop(message: bytes) -> str:
    """The job that a message of RQ's command channel stops; "" for any other message."""
    try:
        command = json.loads(message)
    except (ValueError, RecursionError):
        return ""
    job_id = command.get("job_id") if isinstance(command, dict) and command.get("command") == "stop-job" else None
    return job_id if isinstance(job_id, str) else ""
