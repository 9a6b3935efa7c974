"""A worker's side of the queue: takes jobs, holds them by heartbeats, and writes what became of them."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import cast

import structlog
from prometheus_client import CollectorRegistry
from redis.client import Pipeline, PubSub, Redis
from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker, WorkerStatus

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import PRIORITIES
from jobs.contract.workers import WorkerInfo
from jobs.queue import keys, rq_registries
from jobs.queue.announcements import announce_pipelines, announce_worker, withdraw_worker
from jobs.queue.availability import is_away
from jobs.queue.rubbish import EXECUTION, answers, matched
from jobs.queue.server import check_server
from jobs.settings import Settings
from worker.job_spans import JobSpans
from worker.namesake import Process, keep_name, take_name
from worker.results import REPEAT_SECONDS, Results
from worker.stopping import Stopping
from worker.taking import Cancel, Claim, Submit, Taker, WouldRun

log = structlog.get_logger("worker.inbox")

__all__ = ["Cancel", "Claim", "Inbox", "Submit"]


class RqWorker(BaseWorker):
    """Registers the worker where RQ's tools look for it; runs nothing."""

    def _set_connection(self, connection: Redis) -> Redis:
        return connection  # RQ would raise the timeout of every connection of the pool to its own

    def _set_ip_address(self, connection: Redis) -> None:
        try:
            super()._set_ip_address(connection)
        except ValueError:  # of redis-py, which cannot parse a socket's path that has a space or a "=" in CLIENT INFO
            self.ip_address = "unknown"


class Inbox(Results):
    """One worker's inbox; for one thread, but for `extend`."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        worker_name: str,
        pipelines: Sequence[PipelineInfo],
        registry: CollectorRegistry | None = None,
        process: Process | None = None,
        stopping: Stopping | None = None,
        spans: JobSpans | None = None,
    ) -> None:
        registry, stopping = CollectorRegistry() if registry is None else registry, stopping or Stopping()
        super().__init__(redis, settings, registry, stopping, spans or JobSpans())
        self._name, self._pipelines = worker_name, tuple(pipelines)
        self._taker = Taker(redis, self._ledger, settings, worker_name, self._pipelines, self._metrics)
        self._process = process or Process.current()
        self._rq: RqWorker  # made by `open`: making one asks Redis
        self._queues_changed = True  # since the last look beyond their heads
        self._pubsub: PubSub = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call] # untyped there

    def open(self) -> None:
        """Announce the pipelines and the worker; take back the jobs that an earlier process of this name held.

        Raises: SettingsError while a living worker has the name, and for a Redis that is too old.
        """
        check_server(self._redis)
        take_name(self._redis, self._name, self._process, self._settings.lease_seconds)
        names = [keys.queue(each.id, priority) for priority in PRIORITIES for each in self._pipelines]
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
        for each in cast(set[bytes], self._redis.smembers(rq_registries.executions_key(self._name))):
            if held := matched(EXECUTION, each):
                log.info("recovering", job_id=held[1], worker=self._name)
                self._ledger.recover(held[1], held[2])
            self._redis.srem(rq_registries.executions_key(self._name), each)
        self._ledger.recover_expired_leases()
        self._ledger.enqueue_due()
        self._redis.delete(self._rq.key)  # a killed worker's, which RQ would take for a living namesake
        self._rq.register_birth()  # type: ignore[no-untyped-call] # RQ leaves it untyped
        self._rq.set_state(WorkerStatus.IDLE)
        with self._redis.pipeline() as pipe:
            announce_pipelines(pipe, self._pipelines)
            pipe.execute()

    def poll(
        self, *, room: int, wait_seconds: float, spare: int = 0, would_run: WouldRun = lambda *job: False
    ) -> list[Submit | Cancel]:
        """Take jobs for so many images more, high priority first but for each 16th, and read cancellations.

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
            self._metrics.redis_unavailable.inc()
            log.warning("redis_away", error=str(error))
            if not commands:  # nobody is held up by this: the engine goes on, and results cannot be written either
                time.sleep(max(REPEAT_SECONDS, min(1.0, deadline - time.monotonic())))
        return commands

    def heartbeat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        """Extend the leases of all claims, tell that the worker lives, recover what dead workers held.

        Returns the jobs that are to be dropped: their claim was lost, or somebody cancelled them. While Redis is away
        nothing is known of them, so none is dropped; nobody can take them over in that time either.
        """
        try:
            return self._beat(info, metrics_text)
        except RedisError as error:  # rows in flight go on; the lease decides how long
            self._metrics.redis_unavailable.inc()
            log.warning("heartbeat_failed", error=str(error))
            return []

    def _beat(self, info: WorkerInfo, metrics_text: str) -> list[str]:
        keep_name(self._redis, self._name, self._process, self._settings.lease_seconds)
        claims = list(self._in_flight.values())
        with self._redis.pipeline() as pipe:
            for each in claims:
                pipe.hmget(rq_registries.job_key(each.job_id), "adm_token", "adm_cancel")
            self._extend(pipe, claims)
            spoken = info.model_copy(
                update={"last_heartbeat": self._ledger.now()}
            )  # Redis may have been away until now
            announce_worker(pipe, spoken, metrics_text, self._settings.lease_seconds)
            for pipeline in self._pipelines:  # known already, unless it was retired or Redis has lost its data
                pipe.hsetnx(keys.PIPELINES, pipeline.id, pipeline.model_dump_json())
            self._rq.set_state(WorkerStatus.BUSY if claims else WorkerStatus.IDLE, pipeline=pipe)
            worker_registration.register(self._rq, pipe)
            told = answers(pipe)[: len(claims)]
        self._away_since = None
        dropped = []
        for each, fields in zip(claims, told, strict=True):
            token, cancel = fields or (None, None)
            if token != each.token.encode():
                log.warning("claim_lost", job_id=each.job_id)
                self._release(each)
                dropped.append(each.job_id)
            elif cancel:
                dropped.append(each.job_id)
        self._ledger.recover_expired_leases()
        self._ledger.enqueue_due()
        return dropped

    def extend(self) -> None:
        """Extend the leases of all claims and the signs of life, while the loop has no time for a heartbeat.

        For any thread. What was lost meanwhile stays lost, and is told by the next heartbeat.
        """
        claims = self._in_flight.copy().values()  # at once, while the loop may change it
        try:
            with self._redis.pipeline() as pipe:
                self._extend(pipe, claims)
                for key in (keys.worker, keys.worker_metrics, keys.worker_process):
                    pipe.expire(key(self._name), self._settings.lease_seconds)
                answers(pipe)
        except RedisError as error:
            log.warning("not_extended", error=str(error))

    def _extend(self, pipe: Pipeline, claims: Iterable[Claim]) -> None:
        lease_seconds = self._settings.lease_seconds
        ends_at = self._ledger.now() + lease_seconds
        for each in claims:
            pipe.zadd(keys.LEASES, {f"{each.job_id}:{each.token}": ends_at}, xx=True)
            pipe.expire(keys.progress(each.job_id), lease_seconds, gt=True)  # not that of one that has just ended
        self._rq.heartbeat(pipeline=pipe)

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

    def _release(self, claim: Claim) -> None:
        self._queues_changed |= self._in_flight.get(claim.job_id) is claim  # room for what waits behind the heads
        super()._release(claim)

    def _take(self, room: int, spare: int, would_run: WouldRun, commands: list[Submit | Cancel]) -> None:
        looking = spare if self._queues_changed else 0
        self._queues_changed = False
        for claim in self._taker.take(room, looking, would_run, self._in_flight):
            if (stale := self._in_flight.get(claim.job_id)) is not None:
                self._release(stale)
            self._in_flight[claim.job_id] = claim
            self._reports.begin(claim)
            self.spans.claimed(claim)
            commands.append(Submit(claim))


def told_to_stop(message: bytes) -> str:
    """The job that a message of RQ's command channel is to stop; "" for any other message."""
    try:
        command = json.loads(message)
    except (ValueError, RecursionError):
        return ""
    job_id = command.get("job_id") if isinstance(command, dict) and command.get("command") == "stop-job" else None
    return job_id if isinstance(job_id, str) else ""
