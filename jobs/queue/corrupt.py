"""Handles foreign entries in Redis, and jobs whose record is corrupt.

Other programs, older versions and broken disks write to Redis too. A foreign entry is logged and removed, or
skipped. A corrupt job fails at its next read, and its id is removed from its queue, its lease and its indexes.
"""

import json
import re
from dataclasses import dataclass
from typing import cast

import structlog
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.caller import CALLER_ID
from jobs.contract.job import JobStatus
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import work_of
from jobs.queue import rq_registries
from jobs.redis import keys, rq_keys
from jobs.redis.payload import BadPayloadError, read_payload
from jobs.redis.record import RQ_OF_STATUS, CorruptRecordError, Record
from jobs.redis.replies import matched

log = structlog.get_logger("jobs.queue.corrupt")

UNKNOWN_QUEUE = keys.queue("unknown", "normal")


@dataclass(frozen=True)
class Repair:
    """A corrupt job with the fields that a change of its state needs."""

    record: Record
    lost: tuple[str, ...] | None  # the corrupt fields of its hash; None: its key is no hash

    def write(self, pipe: RedisPipeline) -> None:
        key = rq_keys.job_key(self.record.id)
        if self.lost is None:
            pipe.delete(key)
        else:
            pipe.hdel(key, *self.lost)
        pipe.hset(key, mapping=rq_registries.encodable(self.record.fields))


def repair(redis: Redis, job_id: str, fields: dict[bytes, bytes] | None, error: CorruptRecordError) -> Repair | None:
    """Recover a corrupt job from the indexes, the leases, the queues and its request.

    fields: None if its key is no hash. Returns None if no index lists the job: then it is not a job of this project.
    """
    kept = {name: value for name, value in (fields or {}).items() if name.decode(errors="replace") not in error.names}
    member, status = listed(redis, job_id, float(kept.get(b"adm_created_at") or 0))
    if status is None:
        return None
    request = request_in(kept)
    asked_for = UNKNOWN_QUEUE if request is None or not request.model else keys.queue(request.model, request.priority)
    recovered = {
        "origin": queued_in(redis, job_id) or asked_for,
        "adm_token": leased_under(redis, job_id),
        "adm_caller": caller_of(redis, member),
        "adm_work": json.dumps({} if request is None else work_of(request)),
    }
    known = {
        "status": RQ_OF_STATUS[status].value,
        "adm_cancel": "1" if status is JobStatus.CANCELLING else "",
        "adm_expired": "1" if status is JobStatus.EXPIRED else "",
        # the middle of the microsecond gives the same member
        "adm_created_at": repr((int(member[:16]) + 0.5) / 1_000_000),
    }
    repaired = {name.encode(): value.encode(errors="replace") for name, value in recovered.items()} | kept
    repaired |= {name.encode(): value.encode() for name, value in known.items()}
    log.error("corrupt_job", job_id=job_id, reason=str(error), status=status.value)
    return Repair(Record.parse(job_id, repaired), None if fields is None else error.names)


def listed(redis: Redis, job_id: str, created_at: float) -> tuple[str, JobStatus | None]:
    """Return a job's index member, and the status under which it is listed."""
    member = keys.index_member(created_at, job_id)
    if redis.zscore(keys.index(), member) is None:
        found = member_of(redis, keys.index(), f"{'?' * 16}-{job_id}", keys.INDEX_MEMBER)
        member = member if found is None else found[0]
    return member, next((each for each in JobStatus if redis.zscore(keys.index(each), member) is not None), None)


def leased_under(redis: Redis, job_id: str) -> str:
    """Return the token of the execution that has a lease on a job; "" if there is none."""
    found = member_of(redis, keys.LEASES, f"{job_id}:*", keys.EXECUTION)
    return "" if found is None else found[2]


def member_of(redis: Redis, key: str, glob: str, pattern: re.Pattern[str]) -> re.Match[str] | None:
    """Find a member of a sorted set."""
    members = (member for member, _ in redis.zscan_iter(key, match=glob, count=1000))
    return next((found for each in members if (found := matched(pattern, each))), None)


def queued_in(redis: Redis, job_id: str) -> str | None:
    """Return the queue in which a job waits."""
    for queue in our_queues(redis):
        key = rq_keys.queue_key(queue)
        if redis.type(key) == b"list" and redis.lpos(key, job_id) is not None:
            return queue
    return None


def our_queues(redis: Redis) -> list[str]:
    """Return the queues of this project among those that RQ knows."""
    known = sorted(cast(set[bytes], redis.smembers(rq_keys.QUEUES_KEY)))
    names = (each.decode(errors="replace").removeprefix(rq_keys.queue_key("")) for each in known)
    return [each for each in names if keys.QUEUE.fullmatch(each)]


def caller_of(redis: Redis, member: str) -> str:
    """Return the caller of a job; "" for a job that was made without a key."""
    found = matched(CALLER_ID, cast(bytes | None, redis.hget(keys.JOB_CALLERS, member)) or b"")
    return "" if found is None else found[0]


def request_in(fields: dict[bytes, bytes]) -> ResolvedRequest | None:
    try:
        return read_payload(fields.get(b"data", b""))
    except BadPayloadError:
        return None
