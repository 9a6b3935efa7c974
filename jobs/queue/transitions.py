"""The commands of each change of a job's state, for a transaction that has read the job.

A change writes everything at once: the hash, the queue, RQ's registries, the indexes, the lease, the counters of queued
work and the event. So the service or a worker may be killed between any two commands.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis
from rq.job import JobStatus as RqStatus

from jobs.contract.errors import FailureKind
from jobs.contract.job import ImageRecord, JobStatus, Usage
from jobs.contract.work import RUNNING, rank_of
from jobs.queue import rq_registries, webhooks
from jobs.queue.events import EventKind, publish
from jobs.redis import keys, rq_keys
from jobs.redis.record import RQ_OF_STATUS, Record

RATIOS_KEPT = 32  # number of kept ratios of actual to estimated time, per pipeline


class Transitions:
    """Writes changes of jobs; the code that calls it decides which."""

    def __init__(self, redis: Redis, now: Callable[[], float], retention_seconds: int) -> None:
        self._redis, self._now, self._retention_seconds = redis, now, retention_seconds

    def create(self, pipe: RedisPipeline, record: Record) -> None:
        """Write a new job, which is queued."""
        pipe.hset(rq_keys.job_key(record.id), mapping=rq_registries.encodable(record.fields))
        rq_registries.enqueue(pipe, record, at_front=False)
        for index in (*keys.indexes(None, record.caller), *keys.indexes(JobStatus.QUEUED, record.caller)):
            pipe.zadd(index, {record.index_member: 0})
        if record.caller:
            pipe.hset(keys.JOB_CALLERS, record.index_member, record.caller)
        pipe.zadd(keys.EXPIRING, {record.id: record.expires_at})
        count_work(pipe, record, record.priority, 1)
        publish(pipe, record.id, EventKind.QUEUED, {"status": JobStatus.QUEUED})
        pipe.publish(keys.WAKE_CHANNEL, record.queue)

    def claim(self, pipe: RedisPipeline, record: Record, worker_name: str, token: str, lease_ends_at: float) -> None:
        """Write that a worker takes a queued job."""
        attempt, now = record.starts + 1, self._now()
        rq_registries.dequeue(pipe, record)
        fields = rq_registries.start(pipe, self._redis, record, worker_name, token)
        fields |= {"adm_token": token, "adm_attempt": attempt, "adm_started_at": now}
        reached = None if record.checkpoint is None else record.checkpoint_reached
        fields["adm_reached"] = "" if reached is None else reached.model_dump_json()
        fields["adm_expires_at"] = now + self._retention_seconds  # a running job does not expire
        pipe.hset(rq_keys.job_key(record.id), mapping=rq_registries.encodable(fields))
        pipe.zadd(keys.LEASES, {f"{record.id}:{token}": lease_ends_at})
        pipe.zrem(keys.EXPIRING, record.id)
        move(pipe, record, JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        count_work(pipe, record, record.priority, -1)
        count_work(pipe, record, RUNNING, 1)
        publish(pipe, record.id, EventKind.STARTED, {"status": JobStatus.IN_PROGRESS, "attempt": attempt})

    def complete(
        self,
        pipe: RedisPipeline,
        record: Record,
        images: Sequence[ImageRecord],
        usage: Usage,
        numerics: str,
        results: dict[str, Any] | None,
    ) -> None:
        """Write that a job is completed; this publishes its images and its other results."""
        fields = {
            "adm_images": json.dumps([each.model_dump() for each in images]),
            "adm_usage": usage.model_dump_json(),
            "adm_numerics": numerics,
            "adm_results": "" if results is None else json.dumps(results),
        }
        self._note_estimate(pipe, record)
        self._end(pipe, record, JobStatus.COMPLETED, f"{len(images)} image{'' if len(images) == 1 else 's'}", fields)

    def fail(self, pipe: RedisPipeline, record: Record, kind: FailureKind, detail: str) -> None:
        """Write that a job has failed for good."""
        error = {"kind": kind, "detail": detail}
        fields = {"adm_error": json.dumps(error)}
        self._end(pipe, record, JobStatus.FAILED, f"{kind}: {detail}", fields, error=error)

    def cancel(self, pipe: RedisPipeline, record: Record) -> None:
        """Write that a job was cancelled."""
        self._end(pipe, record, JobStatus.CANCELLED)

    def expire(self, pipe: RedisPipeline, record: Record) -> None:
        """Write that a job was not started in time."""
        self._end(pipe, record, JobStatus.EXPIRED, fields={"adm_expired": "1"})

    def requeue(
        self, pipe: RedisPipeline, record: Record, *, expires_at: float | None = None, **fields: int | str
    ) -> None:
        """Requeue a running job at the front of its queue.

        It expires at `expires_at`, by default after the retention time of ended jobs.
        """
        rq_registries.enqueue(pipe, record, at_front=True)
        self._put_back(pipe, record, RqStatus.QUEUED, expires_at, fields)

    def requeue_later(
        self, pipe: RedisPipeline, record: Record, due_at: float, *, expires_at: float, **fields: int | str
    ) -> None:
        """Delay a running job until due_at, in Redis' time; then it enters its queue at the back."""
        rq_registries.delay(pipe, record, due_at)
        self._put_back(pipe, record, RqStatus.SCHEDULED, expires_at, fields)

    def enqueue_delayed(self, pipe: RedisPipeline, record: Record) -> None:
        """Put a delayed job into its queue."""
        rq_registries.dequeue(pipe, record)
        rq_registries.enqueue(pipe, record, at_front=False)
        pipe.hset(rq_keys.job_key(record.id), "status", RqStatus.QUEUED.value)
        pipe.publish(keys.WAKE_CHANNEL, record.queue)

    def retry_or_fail(
        self, pipe: RedisPipeline, record: Record, kind: FailureKind, detail: str, **fields: int | str
    ) -> JobStatus:
        """Spend a retry, or fail the job if none is left; return its new status."""
        if record.retries_left > 0:
            self.requeue(pipe, record, expires_at=None, retries_left=record.retries_left - 1, **fields)
            return JobStatus.QUEUED
        self.fail(pipe, record, kind, detail)
        return JobStatus.FAILED

    def _put_back(
        self,
        pipe: RedisPipeline,
        record: Record,
        status: RqStatus,
        expires_at: float | None,
        fields: dict[str, int | str],
    ) -> None:
        if expires_at is None:
            expires_at = self._now() + self._retention_seconds
        rq_registries.close_execution(pipe, self._redis, record)
        pipe.hset(
            rq_keys.job_key(record.id),
            mapping=rq_registries.encodable(
                {"status": status.value, "started_at": "", "adm_started_at": "", "adm_token": ""}
                | {"adm_expires_at": expires_at}
                | fields
            ),
        )
        pipe.zadd(keys.EXPIRING, {record.id: expires_at})
        pipe.zrem(keys.LEASES, f"{record.id}:{record.token}")
        pipe.delete(keys.progress(record.id))
        move(pipe, record, record.status, JobStatus.QUEUED)
        count_work(pipe, record, RUNNING, -1)
        count_work(pipe, record, record.priority, 1)
        publish(pipe, record.id, EventKind.QUEUED, {"status": JobStatus.QUEUED, "attempt": record.attempt})
        pipe.publish(keys.WAKE_CHANNEL, record.queue)

    def _end(
        self,
        pipe: RedisPipeline,
        record: Record,
        status: JobStatus,
        detail: str = "",
        fields: Mapping[str, str] = MappingProxyType({}),
        **data: Any,
    ) -> None:
        """Write what every final status has in common, including the single terminal event."""
        was, now, rq_status = record.status, self._now(), RQ_OF_STATUS[status]
        assert not was.is_final, f"{record.id} has ended already"
        written = rq_registries.end(pipe, self._redis, record, rq_status, self._retention_seconds, now, detail)
        written |= {"adm_ended_at": now, "adm_expires_at": now + self._retention_seconds, **fields}
        pipe.hset(rq_keys.job_key(record.id), mapping=rq_registries.encodable(written))
        pipe.hdel(rq_keys.job_key(record.id), "adm_checkpoint")
        if was is JobStatus.QUEUED:
            rq_registries.dequeue(pipe, record, served=False)
            pipe.zrem(keys.EXPIRING, record.id)
            count_work(pipe, record, record.priority, -1)
        else:
            rq_registries.close_execution(pipe, self._redis, record)
            pipe.zrem(keys.LEASES, f"{record.id}:{record.token}")
            count_work(pipe, record, RUNNING, -1)
        pipe.delete(keys.progress(record.id))
        move(pipe, record, was, status)
        pipe.zadd(keys.ENDED, {record.index_member: now + self._retention_seconds})
        publish(pipe, record.id, EventKind(status), {"status": status, "attempt": record.attempt, **data})
        if record.webhook_url:
            webhooks.enqueue(pipe, record.index_member, record.id, status, record.webhook_url, now, record.caller)
        pipe.expire(rq_keys.job_key(record.id), self._retention_seconds)
        pipe.expire(keys.events(record.id), self._retention_seconds)

    def _note_estimate(self, pipe: RedisPipeline, record: Record) -> None:
        """Record the ratio of a job's actual to its estimated time, for the bias and error of later ones."""
        if record.estimated_seconds:
            ratio = (self._now() - record.created_at) / record.estimated_seconds
            pipe.lpush(keys.estimate_ratios(record.pipeline), f"{ratio:.4f}")
            pipe.ltrim(keys.estimate_ratios(record.pipeline), 0, RATIOS_KEPT - 1)


def move(pipe: RedisPipeline, record: Record, old: JobStatus, new: JobStatus) -> None:
    """Move a job between the indexes by status."""
    for index in keys.indexes(old, record.caller):
        pipe.zrem(index, record.index_member)
    for index in keys.indexes(new, record.caller):
        pipe.zadd(index, {record.index_member: 0})


def count_work(pipe: RedisPipeline, record: Record, where: str, sign: int) -> None:
    """Add a job's row steps to a counter (sign -1: subtract), and for a queued job its cost to its caller's counter."""
    rank = rank_of(record.priority, record.work)
    if record.caller and where != RUNNING:
        pipe.hincrby(keys.CALLERS_QUEUED, record.caller, sign * record.cost_ms)
    for stage, row_steps in record.work.items():
        pipe.hincrby(keys.queued_work(record.pipeline), f"{where}:{rank}:{stage}", sign * row_steps)
