"""What each change of a job's state writes, as part of a transaction that has read the job.

It writes everything that follows from the change at once: the hash, the queue, RQ's books, the indexes, the lease, the
counters of queued work, the event. So either side may be killed between any two commands.
"""

import json
from collections.abc import Sequence
from typing import Any

from redis.client import Pipeline, Redis
from rq.job import JobStatus as RqStatus

from jobs.contract.errors import FailureKind
from jobs.contract.job import ImageRecord, JobStatus, Usage
from jobs.contract.work import RUNNING, rank_of
from jobs.queue import keys, rq_registries, webhooks
from jobs.queue.clock import RedisClock
from jobs.queue.events import EventKind, publish
from jobs.queue.record import Record

RATIOS_KEPT = 32  # of what jobs took to what was reckoned


class Transitions:
    """Writes changes of jobs; decides nothing."""

    def __init__(self, redis: Redis, retention_seconds: int) -> None:
        self.redis, self.retention_seconds = redis, retention_seconds
        self.now = RedisClock(redis).now

    def create(self, pipe: Pipeline, record: Record) -> None:
        """Write a job that is queued."""
        pipe.hset(rq_registries.job_key(record.id), mapping=rq_registries.encodable(record.fields))
        rq_registries.enqueue(pipe, record, at_front=False)
        for index in (*keys.indexes(None, record.caller), *keys.indexes(JobStatus.QUEUED, record.caller)):
            pipe.zadd(index, {record.index_member: 0})
        if record.caller:
            pipe.hset(keys.JOB_CALLERS, record.index_member, record.caller)
        pipe.zadd(keys.EXPIRING, {record.id: record.expires_at})
        count_work(pipe, record, record.priority, 1)
        publish(pipe, record.id, EventKind.QUEUED, {"status": JobStatus.QUEUED})
        pipe.publish(keys.WAKE_CHANNEL, record.queue)

    def claim(self, pipe: Pipeline, record: Record, worker_name: str, token: str, lease_ends_at: float) -> None:
        """Write that a worker takes a queued job."""
        attempt, now = record.starts + 1, self.now()
        rq_registries.dequeue(pipe, record)
        fields = rq_registries.start(pipe, self.redis, record, worker_name, token)
        fields |= {"adm_token": token, "adm_attempt": attempt, "adm_started_at": now}
        fields["adm_reached"] = "" if record.checkpoint is None else record.fields.get(b"adm_checkpoint_reached", b"")
        fields["adm_expires_at"] = now + self.retention_seconds  # it is not given up while it runs
        pipe.hset(rq_registries.job_key(record.id), mapping=rq_registries.encodable(fields))
        pipe.zadd(keys.LEASES, {f"{record.id}:{token}": lease_ends_at})
        pipe.zrem(keys.EXPIRING, record.id)
        move(pipe, record, JobStatus.QUEUED, JobStatus.IN_PROGRESS)
        count_work(pipe, record, record.priority, -1)
        count_work(pipe, record, RUNNING, 1)
        publish(pipe, record.id, EventKind.STARTED, {"status": JobStatus.IN_PROGRESS, "attempt": attempt})

    def complete(
        self,
        pipe: Pipeline,
        record: Record,
        images: Sequence[ImageRecord],
        usage: Usage,
        numerics: str,
        results: dict[str, Any] | None,
    ) -> None:
        """Write that a job's images are all there, and what it found besides; this is what publishes both."""
        now = self.now()
        detail = f"{len(images)} image{'' if len(images) == 1 else 's'}"
        fields = rq_registries.end(pipe, self.redis, record, RqStatus.FINISHED, self.retention_seconds, now, detail) | {
            "adm_images": json.dumps([each.model_dump() for each in images]),
            "adm_usage": usage.model_dump_json(),
            "adm_numerics": numerics,
            "adm_results": "" if results is None else json.dumps(results),
        }
        self._note_estimate(pipe, record, now)
        self._end(pipe, record, JobStatus.COMPLETED, EventKind.COMPLETED, fields, now)

    def fail(self, pipe: Pipeline, record: Record, kind: FailureKind, detail: str) -> None:
        """Write that a job has failed for good."""
        now = self.now()
        error = {"kind": kind, "detail": detail}
        fields = rq_registries.end(
            pipe, self.redis, record, RqStatus.FAILED, self.retention_seconds, now, f"{kind}: {detail}"
        ) | {"adm_error": json.dumps(error)}
        self._end(pipe, record, JobStatus.FAILED, EventKind.FAILED, fields, now, error=error)

    def cancel(self, pipe: Pipeline, record: Record) -> None:
        """Write that a job was given up because somebody asked for it."""
        now = self.now()
        fields = rq_registries.end(pipe, self.redis, record, RqStatus.CANCELED, self.retention_seconds, now, "")
        self._end(pipe, record, JobStatus.CANCELLED, EventKind.CANCELLED, fields, now)

    def expire(self, pipe: Pipeline, record: Record) -> None:
        """Write that a job was not started in time."""
        now = self.now()
        fields = rq_registries.end(pipe, self.redis, record, RqStatus.CANCELED, self.retention_seconds, now, "")
        self._end(pipe, record, JobStatus.EXPIRED, EventKind.EXPIRED, fields | {"adm_expired": "1"}, now)

    def requeue(self, pipe: Pipeline, record: Record, *, expires_at: float | None = None, **fields: int | str) -> None:
        """Put a job in progress back to the front of its queue.

        It expires at `expires_at`, by default after the time for which an ended job is kept.
        """
        rq_registries.enqueue(pipe, record, at_front=True)
        self._put_back(pipe, record, RqStatus.QUEUED, expires_at, fields)

    def requeue_later(
        self, pipe: Pipeline, record: Record, due_at: float, *, expires_at: float, **fields: int | str
    ) -> None:
        """Put a job in progress aside until a time of Redis, when it enters its queue at the back."""
        rq_registries.delay(pipe, record, due_at)
        self._put_back(pipe, record, RqStatus.SCHEDULED, expires_at, fields)

    def enqueue_delayed(self, pipe: Pipeline, record: Record) -> None:
        """Let a delayed job enter its queue."""
        rq_registries.dequeue(pipe, record)
        rq_registries.enqueue(pipe, record, at_front=False)
        pipe.hset(rq_registries.job_key(record.id), "status", RqStatus.QUEUED.value)
        pipe.publish(keys.WAKE_CHANNEL, record.queue)

    def retry_or_fail(
        self, pipe: Pipeline, record: Record, kind: FailureKind, detail: str, **fields: int | str
    ) -> JobStatus:
        """Spend a retry, or fail the job when none is left; returns what it is then."""
        if record.retries_left > 0:
            self.requeue(pipe, record, expires_at=None, retries_left=record.retries_left - 1, **fields)
            return JobStatus.QUEUED
        self.fail(pipe, record, kind, detail)
        return JobStatus.FAILED

    def _put_back(
        self,
        pipe: Pipeline,
        record: Record,
        status: RqStatus,
        expires_at: float | None,
        fields: dict[str, int | str],
    ) -> None:
        if expires_at is None:
            expires_at = self.now() + self.retention_seconds
        rq_registries.close_execution(pipe, self.redis, record)
        pipe.hset(
            rq_registries.job_key(record.id),
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
        pipe: Pipeline,
        record: Record,
        status: JobStatus,
        event: EventKind,
        fields: dict[str, Any],
        now: float,
        **data: Any,
    ) -> None:
        """What all ends have in common, the one terminal event among it."""
        was = record.status
        assert not was.is_final, f"{record.id} has ended already"
        fields |= {"adm_ended_at": now, "adm_expires_at": now + self.retention_seconds}
        pipe.hset(rq_registries.job_key(record.id), mapping=rq_registries.encodable(fields))
        pipe.hdel(rq_registries.job_key(record.id), "adm_checkpoint")
        if was is JobStatus.QUEUED:
            rq_registries.dequeue(pipe, record, served=False)
            pipe.zrem(keys.EXPIRING, record.id)
            count_work(pipe, record, record.priority, -1)
        else:
            rq_registries.close_execution(pipe, self.redis, record)
            pipe.zrem(keys.LEASES, f"{record.id}:{record.token}")
            count_work(pipe, record, RUNNING, -1)
        pipe.delete(keys.progress(record.id))
        move(pipe, record, was, status)
        pipe.zadd(keys.ENDED, {record.index_member: now + self.retention_seconds})
        publish(pipe, record.id, event, {"status": status, "attempt": record.attempt, **data})
        if url := record.text("adm_webhook_url"):
            webhooks.enqueue(pipe, record.index_member, record.id, status, url, now)
        pipe.expire(rq_registries.job_key(record.id), self.retention_seconds)
        pipe.expire(keys.events(record.id), self.retention_seconds)

    def _note_estimate(self, pipe: Pipeline, record: Record, now: float) -> None:
        """Remember what a job took, of what had been reckoned when it came, for the bias and error of later ones."""
        reckoned = record.number("adm_reckoned_seconds")
        if reckoned:
            pipe.lpush(keys.estimate_ratios(record.pipeline), f"{(now - record.created_at) / reckoned:.4f}")
            pipe.ltrim(keys.estimate_ratios(record.pipeline), 0, RATIOS_KEPT - 1)


def move(pipe: Pipeline, record: Record, old: JobStatus, new: JobStatus) -> None:
    """Move a job between the indexes by status."""
    for index in keys.indexes(old, record.caller):
        pipe.zrem(index, record.index_member)
    for index in keys.indexes(new, record.caller):
        pipe.zadd(index, {record.index_member: 0})


def count_work(pipe: Pipeline, record: Record, where: str, sign: int) -> None:
    """Add a job's row steps to a counter, and while it is queued its cost to its caller's; or take them away."""
    rank = rank_of(record.priority, record.work)
    if record.caller and where != RUNNING:
        pipe.hincrby(keys.CALLERS_QUEUED, record.caller, sign * record.cost_ms)
    for stage, row_steps in record.work.items():
        pipe.hincrby(keys.queued_work(record.pipeline), f"{where}:{rank}:{stage}", sign * row_steps)
