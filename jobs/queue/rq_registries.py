"""RQ's registries: what `rq info` and rq-dashboard read about our jobs, written along with every change of state.

Two things differ from RQ's own worker, on purpose. Entries of the started registry never expire, because RQ's tools
clean that registry when they read it, and would fail or retry a job; our leases decide which worker is dead. And no
intermediate list is used: the transaction that claims a job takes it from its queue, so it is never between two lists.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis
from redis.typing import EncodableT, FieldT
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, Retry
from rq.job import JobStatus as RqStatus
from rq.queue import Queue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.utils import utcformat
from rq.worker_registration import clean_worker_registry

from jobs.callers import turns
from jobs.contract.job import JobStatus
from jobs.redis.record import Record
from jobs.redis.rq_keys import QUEUES_KEY, delayed_key, executions_key, job_key, queue_key, results_key, started_key

FUNCTION = "adm.generate"  # the function's name in dashboards; nothing imports it
RETRIES = Retry(max=3, interval=0, enqueue_at_front=True)
EXECUTION_SECONDS = 30 * 86400  # lifetime of RQ's record of an execution that nobody ends
ENDED_REGISTRIES = {
    RqStatus.FINISHED: FinishedJobRegistry,
    RqStatus.FAILED: FailedJobRegistry,
    RqStatus.CANCELED: CanceledJobRegistry,
}


def encodable(fields: Mapping[str, Any] | Mapping[bytes, bytes]) -> dict[FieldT, EncodableT]:
    """A hash to write, with the types that redis-py expects."""
    return {name: value for name, value in fields.items()}  # noqa: C416 - dict() would keep the narrower key type


def common_fields(redis: Redis, retention_seconds: int) -> dict[str, Any]:
    """The fields that all queued RQ jobs have in common; `new_job` adds the others, in a tenth of RQ's own time."""
    job = Job.create(
        FUNCTION,
        connection=redis,
        status=RqStatus.QUEUED,
        timeout=-1,  # the worker's loop checks time between steps
        result_ttl=retention_seconds,
        failure_ttl=retention_seconds,
        retry=RETRIES,
        serializer=JSONSerializer,
    )
    fields: dict[str, Any] = job.to_dict()
    return fields


def new_job(common: Mapping[str, Any], queue: str, kwargs: dict[str, Any], description: str) -> dict[str, Any]:
    """Fields of a queued RQ job that carries JSON."""
    right_now, call = utcformat(datetime.now(UTC)), (FUNCTION, None, (), kwargs)
    return {
        **common,
        "origin": queue,
        "description": description,
        "created_at": right_now,
        "enqueued_at": right_now,
        "data": zlib.compress(json.dumps(call).encode()),  # as JSONSerializer does
    }


def enqueue(pipe: RedisPipeline, record: Record, *, at_front: bool) -> None:
    """Put a job's id into its queue, at its caller's turn or at the front. Only for `jobs.queue.transaction`."""
    pipe.sadd(QUEUES_KEY, queue_key(record.queue))
    turns.enter(pipe, queue_key(record.queue), job_key(""), entry_of(record), at_front=at_front)


def entry_of(record: Record) -> turns.Entry:
    return turns.Entry(record.id, record.queue, record.caller, record.share)


def delay(pipe: RedisPipeline, record: Record, due_at: float) -> None:
    """Put a job's id into RQ's registry of delayed jobs."""
    pipe.sadd(QUEUES_KEY, queue_key(record.queue))
    pipe.zadd(delayed_key(record.queue), {record.id: due_at})


def dequeue(pipe: RedisPipeline, record: Record, *, served: bool = True) -> None:
    """Remove a job's id from its queue, or from the delayed jobs of that queue.

    served: the caller used its turn, so its share is not refunded.
    """
    pipe.lrem(queue_key(record.queue), 1, record.id)
    turns.leave(pipe, queue_key(record.queue), entry_of(record), served=served or record.starts > 0)
    if record.is_delayed:
        pipe.zrem(delayed_key(record.queue), record.id)


def start(pipe: RedisPipeline, redis: Redis, record: Record, worker_name: str, token: str) -> dict[str, Any]:
    """Open an execution; return the fields to set in the job's hash."""
    execution = Execution(token, record.id, redis, worker_name)
    execution.save(EXECUTION_SECONDS, pipe)
    ExecutionRegistry(record.id, redis).add(execution, EXECUTION_SECONDS, pipe)
    pipe.zadd(started_key(record.queue), {execution.composite_key: "+inf"})
    pipe.sadd(executions_key(worker_name), execution.composite_key)
    right_now = utcformat(execution.created_at)
    return {
        "status": RqStatus.STARTED.value,
        "started_at": right_now,
        "last_heartbeat": right_now,
        "worker_name": worker_name,
    }


def close_execution(pipe: RedisPipeline, redis: Redis, record: Record) -> None:
    """End the execution that a job is in, if any."""
    if not record.token:
        return
    execution = Execution(record.token, record.id, redis, record.worker_name)
    pipe.delete(execution.key, ExecutionRegistry(record.id, redis).key)
    pipe.zrem(started_key(record.queue), execution.composite_key)
    pipe.srem(execution.worker_executions_key, execution.composite_key)


def end(
    pipe: RedisPipeline, redis: Redis, record: Record, status: RqStatus, retention_seconds: int, now: float, detail: str
) -> dict[str, Any]:
    """Add an ended job to its registry, with a result; return the fields to set in the job's hash."""
    registry = ENDED_REGISTRIES[status].key_template.format(record.queue)
    pipe.zadd(registry, {record.id: now + retention_seconds})
    if status is not RqStatus.CANCELED:
        succeeded = status is RqStatus.FINISHED
        result = Result(
            record.id,
            Result.Type.SUCCESSFUL if succeeded else Result.Type.FAILED,
            redis,
            return_value=detail if succeeded else None,
            exc_string=None if succeeded else detail,
            worker_name=record.worker_name,
            serializer=JSONSerializer,
        )
        pipe.xadd(results_key(record.id), encodable(result.serialize()), maxlen=10)
        pipe.expire(results_key(record.id), retention_seconds)
    return {"status": status.value, "ended_at": utcformat(datetime.fromtimestamp(now, UTC))}


def forget(pipe: RedisPipeline, redis: Redis, record: Record) -> None:
    """Remove every trace of a job from RQ's registries."""
    dequeue(pipe, record, served=record.status is not JobStatus.QUEUED)
    close_execution(pipe, redis, record)
    for registry in ENDED_REGISTRIES.values():
        pipe.zrem(registry.key_template.format(record.queue), record.id)
    pipe.delete(job_key(record.id), results_key(record.id))


def tell_to_stop(pipe: RedisPipeline, record: Record) -> None:
    """Send RQ's own command for stopping a job to the worker that runs it."""
    command = {"command": "stop-job", "job_id": record.id}
    pipe.publish(PUBSUB_CHANNEL_TEMPLATE % record.worker_name, json.dumps(command))


def forget_dead_workers(redis: Redis, queues: Iterable[str]) -> None:
    """Remove workers whose record has expired from RQ's set of all workers and from its set for each of the queues."""
    for each in queues:
        clean_worker_registry(Queue(each, connection=redis))


def trim_registries(redis: Redis, queue_key: str, now: float) -> None:
    """Remove expired entries of ended jobs from a queue's registries."""
    queue = queue_key.removeprefix(Queue.redis_queue_namespace_prefix)
    for registry in ENDED_REGISTRIES.values():
        redis.zremrangebyscore(registry.key_template.format(queue), "-inf", now)
