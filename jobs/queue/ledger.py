"""Changes of a job's state, each in one Redis transaction.

A change reads the job's hash, decides, and commits the commands of `jobs.queue.transitions` only if the hash is still
the same. Results are fenced: only the holder of the job's token may write them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import structlog
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis
from redis.exceptions import ResponseError

from jobs.callers.queued_time import WITHIN, within
from jobs.callers.turns import ENTER, Place, place_of_reply
from jobs.contract.caller import ANONYMOUS, Caller
from jobs.contract.errors import ErrorKind, FailureKind, RefusedError
from jobs.contract.job import CheckpointRecord, JobStatus, Progress
from jobs.contract.work import RUNNING
from jobs.contract.worker_deaths import DEATHS_ALONE, MANY_ALONE
from jobs.queue import rq_registries
from jobs.queue.corrupt import our_queues, repair
from jobs.queue.transaction import commit
from jobs.queue.transitions import Transitions, count_work, move
from jobs.redis import keys, rq_keys
from jobs.redis.clock import RedisClock
from jobs.redis.record import CorruptRecordError, Record
from jobs.redis.replies import answers, is_wrong_type, matched

log = structlog.get_logger("jobs.queue.ledger")

T = TypeVar("T")


class Group(NamedTuple):
    """New jobs of one caller, of which all are queued or none."""

    jobs: Sequence[Record]
    most_queued_ms: int | None  # the caller's quota of queued device time; None: no quota


class Above(NamedTuple):
    """The reason why a group was not queued: with the device time that its caller has queued, it exceeds the quota."""

    queued_ms: int


class Ledger:
    """Changes jobs; its only state is the connection.

    `transitions` writes the commands of a change into its transaction.

    deaths_alone: a job fails after so many deaths of workers at its furthest step while it ran alone.
    """

    def __init__(self, redis: Redis, retention_seconds: int, deaths_alone: int = DEATHS_ALONE) -> None:
        self._redis, self._retention_seconds, self._deaths_alone = redis, retention_seconds, deaths_alone
        self.now = RedisClock(redis).now
        self.transitions = Transitions(redis, self.now, retention_seconds)

    def read(self, job_id: str) -> Record | None:
        """Read a job; return None if there is none. A corrupt job is failed by this call."""
        return self.parse(job_id, hash_of(self._redis, job_id))

    def parse(self, job_id: str, fields: dict[bytes, bytes] | None) -> Record | None:
        """Parse a job's hash; fields: None if its key is not a hash. A corrupt job is failed by this call."""
        try:
            return record_in(job_id, fields)
        except CorruptRecordError:
            return self.change(job_id, lambda pipe, record: record)

    def change(self, job_id: str, decide: Callable[[RedisPipeline, Record | None], T]) -> T:
        """Run one transaction on a job; `decide` runs again if another process changed the job meanwhile.

        A corrupt job is failed first, so that no caller ever sees one. A key that is not a job of this project counts
        as absent.
        """
        key = rq_keys.job_key(job_id)
        while True:
            fields, pipe, record = hash_of(self._redis, job_id), self._redis.pipeline(), None
            try:
                record = record_in(job_id, fields)
            except CorruptRecordError as error:
                if repaired := repair(self._redis, job_id, fields, error):
                    repaired.write(pipe)
                    if not repaired.record.status.is_final:
                        self.transitions.fail(pipe, repaired.record, FailureKind.BAD_PAYLOAD, str(error))
                    commit(self._redis, key, fields, pipe)
                    continue
            outcome = decide(pipe, record)
            if commit(self._redis, key, fields, pipe) is not None:
                return outcome

    def enqueue(self, groups: Sequence[Group]) -> list[list[Place] | Above] | None:
        """Queue groups of jobs; return for each group the places of its jobs, or `Above` if it exceeds the quota.

        If the id of the first job is taken, queue none and return None. The other ids are random, so never taken.
        """
        pipe = self._redis.pipeline()
        for each in groups:
            within(pipe, each.jobs[0].caller, sum(job.cost_ms for job in each.jobs), each.most_queued_ms)
            for job in each.jobs:
                self.transitions.create(pipe, job)
        commands = [args[0] for args, _ in pipe.command_stack]
        replies = commit(self._redis, rq_keys.job_key(groups[0].jobs[0].id), {}, pipe)
        if replies is None:
            return None
        outcomes = list[list[Place] | Above]()
        for command, reply in zip(commands, replies, strict=True):
            if command == WITHIN:
                outcomes.append([] if reply is None else Above(reply))
            elif command == ENTER and isinstance(places := outcomes[-1], list):
                places.append(place_of_reply(reply))
        return outcomes

    def note_checkpoint(self, job_id: str, token: str, checkpoint: CheckpointRecord, reached: Progress) -> bool:
        """Write the checkpoint from which a running job can resume; return False if another execution has the job.

        reached: the progress in the checkpoint; the job may be further by now.
        """

        def decide(pipe: RedisPipeline, record: Record | None) -> bool:
            if record is None or record.token != token or record.status.is_final:
                return False
            fields = {
                "adm_checkpoint": checkpoint.model_dump_json(),
                "adm_checkpoint_reached": reached.model_dump_json(),
            }
            pipe.hset(rq_keys.job_key(job_id), mapping=rq_registries.encodable(fields))
            return True

        return self.change(job_id, decide)

    def request_cancel(self, job_id: str, caller: Caller = ANONYMOUS) -> Record:
        """Cancel a queued job at once; request a cancel of a running job from its worker.

        Returns the job as it was before. Raises: RefusedError for a job that is not the caller's or has ended.
        """

        def decide(pipe: RedisPipeline, record: Record | None) -> Record:
            if record is None or not caller.may_see(record.caller):
                raise RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id!r}")
            match record.status:
                case JobStatus.QUEUED:
                    self.transitions.cancel(pipe, record)
                case JobStatus.IN_PROGRESS:
                    # the flag decides; the message only speeds it up, and is lost while a worker restarts
                    pipe.hset(rq_keys.job_key(job_id), "adm_cancel", "1")
                    move(pipe, record, JobStatus.IN_PROGRESS, JobStatus.CANCELLING)
                    rq_registries.tell_to_stop(pipe, record)
                case JobStatus.CANCELLING:
                    pass
                case ended:
                    raise RefusedError(ErrorKind.JOB_ENDED, f"job {job_id} is {ended} already")
            return record

        return self.change(job_id, decide)

    def delete(self, job_id: str, member: str | None = None) -> Record | None:
        """Remove a job in any state; its worker will find its token missing. Returns None if there was no such job.

        member: remove only the job with this index member, and no later job with the same id.
        """

        def decide(pipe: RedisPipeline, record: Record | None) -> Record | None:
            if record is None or member not in (None, record.index_member):
                return None
            status = record.status
            if status in (JobStatus.IN_PROGRESS, JobStatus.CANCELLING):
                rq_registries.tell_to_stop(pipe, record)
                count_work(pipe, record, RUNNING, -1)
            elif status is JobStatus.QUEUED:
                count_work(pipe, record, record.priority, -1)
            rq_registries.forget(pipe, self._redis, record)
            for index in (*keys.indexes(None, record.caller), *keys.indexes(status, record.caller)):
                pipe.zrem(index, record.index_member)
            pipe.hdel(keys.JOB_CALLERS, record.index_member)
            pipe.zrem(keys.LEASES, f"{job_id}:{record.token}")
            pipe.zrem(keys.EXPIRING, job_id)
            pipe.zrem(keys.ENDED, record.index_member)
            pipe.delete(keys.events(job_id), keys.progress(job_id))
            pipe.publish(keys.channel(job_id), b"")
            return record

        return self.change(job_id, decide)

    def recover(self, job_id: str, token: str) -> None:
        """Requeue a job whose worker died, without spending a retry; fail it if the deaths show it as their cause."""

        def decide(pipe: RedisPipeline, record: Record | None) -> None:
            if record is None or record.token != token or record.status.is_final:
                pipe.zrem(keys.LEASES, f"{job_id}:{token}")
            elif record.cancel_requested:
                self.transitions.cancel(pipe, record)
            else:
                self._note_death(pipe, record)

        self.change(job_id, decide)

    def _note_death(self, pipe: RedisPipeline, record: Record) -> None:
        checkpoint = "" if record.checkpoint is None else record.checkpoint.sha256
        deaths = record.deaths.with_another(record.reached, checkpoint, self.now())
        log.warning("worker_died", job_id=record.id, worker=record.worker_name, deaths=deaths.model_dump())
        if deaths.at_furthest >= self._deaths_alone:
            self.transitions.fail(pipe, record, FailureKind.WORKER_LOST, f"{deaths}; see the workers' logs")
            return
        # counted from the first death without progress; counted from this one, the job would never expire
        expires_at = deaths.no_progress_since + self._retention_seconds
        if deaths.alone >= MANY_ALONE:
            log.warning("many_deaths_alone", job_id=record.id, deaths=deaths.alone, expires_at=expires_at)
        fields = {"adm_worker_deaths": deaths.model_dump_json()}
        if deaths.delay_seconds:
            due_at = self.now() + deaths.delay_seconds
            self.transitions.requeue_later(pipe, record, due_at, expires_at=expires_at, **fields)
        else:
            self.transitions.requeue(pipe, record, expires_at=expires_at, **fields)

    def recover_expired_leases(self) -> int:
        """Requeue the jobs of workers whose lease has ended; return their number."""
        ended = cast(list[bytes], self._redis.zrangebyscore(keys.LEASES, "-inf", self.now()))
        for each in ended:
            if execution := matched(keys.EXECUTION, each):
                self.recover(execution[1], execution[2])
            else:
                log.warning("foreign_lease", entry=repr(each[:80]))
                self._redis.zrem(keys.LEASES, each)
        return len(ended)

    def enqueue_due(self) -> None:
        """Put the jobs whose delay has ended into their queues."""
        now = self.now()
        queues = our_queues(self._redis)
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrangebyscore(rq_keys.delayed_key(queue), "-inf", now)
            due = zip(queues, answers(pipe), strict=True)
        for queue, entries in due:
            for entry in entries or ():
                self._enqueue_due(queue, entry)

    def _enqueue_due(self, queue: str, entry: bytes) -> None:
        def decide(pipe: RedisPipeline, record: Record | None) -> None:
            if record is not None and record.is_delayed and record.queue == queue:
                self.transitions.enqueue_delayed(pipe, record)
            else:
                pipe.zrem(rq_keys.delayed_key(queue), entry)

        if matched(keys.JOB_ID, entry):
            self.change(entry.decode(), decide)
        else:
            log.warning("foreign_delayed_job", queue=queue, entry=repr(entry[:80]))
            self._redis.zrem(rq_keys.delayed_key(queue), entry)


def record_in(job_id: str, fields: dict[bytes, bytes] | None) -> Record | None:
    """Parse a job's hash; return None for an empty one. fields: None if the key is not a hash.

    Raises: CorruptRecordError.
    """
    if fields is None:
        raise CorruptRecordError
    return Record.parse(job_id, fields) if fields else None


def hash_of(redis: Redis, job_id: str) -> dict[bytes, bytes] | None:
    """A job's hash, empty if there is none; None if its key has another type."""
    try:
        return cast(dict[bytes, bytes], redis.hgetall(rq_keys.job_key(job_id)))
    except ResponseError as error:
        if is_wrong_type(error):
            return None
        raise
