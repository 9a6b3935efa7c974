"""A damaged job: its hash has a field that cannot be read, or its key is no hash at all.

Such a job fails at the next look at it. What that needs to know and the hash does not tell any more is told by what
lies around it: the indexes, the leases and the queues.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import structlog
from redis.client import Pipeline, Redis
from rq.job import JobStatus as RqStatus

from jobs.contract.job import JobStatus
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import work_of
from jobs.queue import keys, rq_registries
from jobs.queue.payload import BadPayloadError
from jobs.queue.record import Record
from jobs.queue.rubbish import EXECUTION, INDEX_MEMBER, matched
from jobs.queue.soundness import QUEUE, damage_of

log = structlog.get_logger("jobs.queue.mending")

RQ_OF_STATUS = {
    JobStatus.QUEUED: RqStatus.QUEUED,
    JobStatus.IN_PROGRESS: RqStatus.STARTED,
    JobStatus.CANCELLING: RqStatus.STARTED,
    JobStatus.COMPLETED: RqStatus.FINISHED,
    JobStatus.FAILED: RqStatus.FAILED,
    JobStatus.CANCELLED: RqStatus.CANCELED,
    JobStatus.EXPIRED: RqStatus.CANCELED,
}
UNKNOWN_QUEUE = keys.queue("unknown", "normal")


@dataclass(frozen=True)
class Mended:
    """A damaged job with its gaps filled."""

    record: Record
    reason: str
    filled: Mapping[str, str]
    dropped: tuple[str, ...]  # fields
    was_hash: bool
    indexed: JobStatus | None  # where it was listed

    def write(self, pipe: Pipeline) -> None:
        """Write the hash anew, as far as it was damaged, and take the job out of the index it was in."""
        key = rq_registries.job_key(self.record.id)
        if not self.was_hash:
            pipe.delete(key)
        elif self.dropped:
            pipe.hdel(key, *self.dropped)
        pipe.hset(key, mapping=rq_registries.encodable(self.filled))
        caller = self.record.caller
        if self.indexed is not None:
            for index in keys.indexes(self.indexed, caller):
                pipe.zrem(index, self.record.index_member)
        for index in keys.indexes(self.record.status, caller):
            pipe.zadd(index, {self.record.index_member: 0})


def mend(redis: Redis, job_id: str, fields: dict[bytes, bytes] | None) -> Mended | None:
    """What a damaged job was, as Redis tells; None for what is no job of ours.

    fields: None where the key is no hash.
    """
    read = Record(job_id, fields or {})
    damage = damage_of(read.fields)
    created_at, indexed = indexed_as(redis, read, damage)
    token, queue = leased_as(redis, job_id), queued_in(redis, job_id)
    if indexed is not None:
        status = indexed
    elif token or queue:
        status = JobStatus.IN_PROGRESS if token else JobStatus.QUEUED
    else:
        return None
    request = request_of(read)
    if queue is None:
        queue = UNKNOWN_QUEUE if request is None or not request.model else keys.queue(request.model, request.priority)
    told: dict[str, str] = {
        "status": RQ_OF_STATUS[status].value,
        "origin": queue,
        "adm_work": json.dumps({} if request is None else work_of(request)),
        "adm_token": token,
        "adm_caller": caller_of(redis, created_at, job_id),
    }
    filled = {name: value for name, value in told.items() if name in damage or fields is None}
    filled["adm_created_at"] = repr(created_at)
    dropped = tuple(name for name in damage if name not in filled)
    kept = {name: value for name, value in read.fields.items() if name.decode(errors="replace") not in dropped}
    record = Record(job_id, kept | {name.encode(): value.encode() for name, value in filled.items()})
    what = "is no hash" if fields is None else f"is damaged: {', '.join(damage)}"
    log.error("damaged_job", job_id=job_id, damage=what, status=record.status.value)
    return Mended(record, f"its record in Redis {what}", filled, dropped, fields is not None, indexed)


def indexed_as(redis: Redis, read: Record, damage: Collection[str]) -> tuple[float, JobStatus | None]:
    """When a job was created, and which status it is listed under."""
    told = 0.0 if "adm_created_at" in damage else read.created_at
    if status := listed_as(redis, keys.index_member(told, read.id)):
        return told, status
    pattern = f"*-{''.join(f'[{each}]' for each in read.id)}"
    for member, _ in redis.zscan_iter(keys.index(), match=pattern, count=1000):
        if (found := matched(INDEX_MEMBER, member)) and found[2] == read.id:
            microseconds = int(found[1]) + 0.5  # the middle, so that rounding gives the same member
            return microseconds / 1_000_000, listed_as(redis, found[0])
    return told, None


def listed_as(redis: Redis, member: str) -> JobStatus | None:
    return next((each for each in JobStatus if redis.zscore(keys.index(each), member) is not None), None)


def caller_of(redis: Redis, created_at: float, job_id: str) -> str:
    """Whose a job is; "" where it was made without a key."""
    found = cast(bytes | None, redis.hget(keys.JOB_CALLERS, keys.index_member(created_at, job_id))) or b""
    return found.decode(errors="replace")


def leased_as(redis: Redis, job_id: str) -> str:
    """The token under which a worker holds a job; "" where none does."""
    for member, _ in redis.zscan_iter(keys.LEASES, count=1000):
        if (found := matched(EXECUTION, member)) and found[1] == job_id:
            return found[2]
    return ""


def queued_in(redis: Redis, job_id: str) -> str | None:
    """The queue of ours in which a job waits."""
    for key in sorted(cast(set[bytes], redis.smembers(rq_registries.QUEUES_KEY))):
        name = key.decode(errors="replace").removeprefix(rq_registries.queue_key(""))
        if QUEUE.fullmatch(name) and redis.type(key) == b"list" and redis.lpos(key, job_id) is not None:
            return name
    return None


def request_of(record: Record) -> ResolvedRequest | None:
    try:
        return record.request()
    except BadPayloadError:
        return None
