"""Every change of a job's state, each one transaction in Redis.

A change reads the job's hash, decides by it, and writes what `jobs.queue.transitions` says if the hash has not changed.
Results are fenced: only who holds the job's token may write them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import structlog
from redis.client import Pipeline, Redis
from redis.exceptions import ResponseError

from jobs.callers.caller import ANONYMOUS, Caller
from jobs.callers.turns import ENTER, Place, place_told
from jobs.contract.errors import ErrorKind, FailureKind, RefusedError
from jobs.contract.job import CheckpointRecord, JobStatus, Progress
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import RUNNING
from jobs.queue import keys, rq_registries
from jobs.queue.deaths import DEATHS_ALONE, MANY_ALONE
from jobs.queue.mending import mend
from jobs.queue.payload import payload_of
from jobs.queue.record import Record
from jobs.queue.rubbish import EXECUTION, JOB_ID, answers, is_wrong_type, matched
from jobs.queue.soundness import QUEUE, damage_of
from jobs.queue.transaction import commit
from jobs.queue.transitions import Transitions, count_work, move

log = structlog.get_logger("jobs.queue.ledger")

T = TypeVar("T")


class Ledger(Transitions):
    """Changes jobs; holds nothing but its connection.

    deaths_alone: so many deaths of workers at the furthest step of a job that ran alone fail the job.
    """

    def __init__(self, redis: Redis, retention_seconds: int, deaths_alone: int = DEATHS_ALONE) -> None:
        super().__init__(redis, retention_seconds)
        self._deaths_alone = deaths_alone

    def read(self, job_id: str) -> Record | None:
        """A job as it is now; a damaged one fails by that."""
        return self.sound(job_id, hash_of(self.redis, job_id))

    def sound(self, job_id: str, fields: dict[bytes, bytes] | None) -> Record | None:
        """The job of a hash that was just read, None where its key is no hash; a damaged one fails by that."""
        if fields is None or (fields and damage_of(fields)):
            return self.change(job_id, lambda pipe, record: record)
        return Record(job_id, fields) if fields else None

    def change(self, job_id: str, decide: Callable[[Pipeline, Record | None], T]) -> T:
        """Run one transaction on a job; `decide` may run again when somebody else changed the job meanwhile.

        A damaged job is failed first, so that nobody else ever sees one; what is no job of ours is none.
        """
        key = rq_registries.job_key(job_id)
        while True:
            fields, pipe = hash_of(self.redis, job_id), self.redis.pipeline()
            damaged = fields is None or (fields and damage_of(fields))
            if damaged and (mended := mend(self.redis, job_id, fields)) is not None:
                mended.write(pipe)
                if not mended.record.status.is_final:
                    self.fail(pipe, mended.record, FailureKind.BAD_PAYLOAD, mended.reason)
                commit(self.redis, key, fields, pipe)
                continue
            outcome = decide(pipe, Record(job_id, fields) if fields and not damaged else None)
            if commit(self.redis, key, fields, pipe) is not None:
                return outcome

    def draft(
        self,
        job_id: str,
        request: ResolvedRequest,
        *,
        class_name: str | None,
        work: dict[str, int],
        reckoned_seconds: float | None,
        cost_ms: int,
        body_digest: str,
        request_id: str,
        caller: Caller = ANONYMOUS,
    ) -> Record:
        """A job as it will be once `enqueue` or `submit` has queued it."""
        now = self.now()
        queue, description = keys.queue(request.model, request.priority), describe(request, class_name)
        fields = rq_registries.new_job(
            self.redis, job_id, queue, payload_of(request), description, self.retention_seconds
        ) | {
            "adm_created_at": now,
            "adm_expires_at": now + request.expires_in,
            "adm_class_name": class_name or "",
            "adm_work": json.dumps(work),
            "adm_reckoned_seconds": "" if reckoned_seconds is None else reckoned_seconds,
            "adm_body": body_digest,
            "adm_request_id": request_id,
            "adm_webhook_url": request.webhook_url or "",
            "adm_caller": caller.id,
            "adm_cost_ms": cost_ms,
            "adm_share": cost_ms / 1000 / caller.weight,
        }
        return Record(job_id, {name.encode(): encoded(value) for name, value in fields.items()})

    def enqueue(self, drafts: Sequence[Record]) -> list[Place] | None:
        """Queue jobs, all of them or none, and return their places; None, and none is queued, if the first id is taken.

        No other call can have the ids of the others.
        """
        pipe = self.redis.pipeline()
        for each in drafts:
            self.create(pipe, each)
        commands = [args[0] for args, _ in pipe.command_stack]
        told = commit(self.redis, rq_registries.job_key(drafts[0].id), {}, pipe) if drafts else []
        if told is None:
            return None
        return [place_told(answer) for command, answer in zip(commands, told, strict=True) if command == ENTER]

    def submit(self, draft: Record) -> tuple[Record, bool]:
        """Queue a job unless its id is there; returns it as it is now, and whether this call queued it."""

        def decide(pipe: Pipeline, present: Record | None) -> tuple[Record, bool]:
            if present is not None:
                return present, False
            self.create(pipe, draft)
            return draft, True

        return self.change(draft.id, decide)

    def note_checkpoint(self, job_id: str, token: str, checkpoint: CheckpointRecord, reached: Progress) -> bool:
        """Write from where a job in progress may go on; False where another execution may write its results.

        reached: where the job stood in the state that was written; it has moved on since.
        """

        def decide(pipe: Pipeline, record: Record | None) -> bool:
            if record is None or record.token != token or record.status.is_final:
                return False
            fields = {
                "adm_checkpoint": checkpoint.model_dump_json(),
                "adm_checkpoint_reached": reached.model_dump_json(),
            }
            pipe.hset(rq_registries.job_key(job_id), mapping=rq_registries.encodable(fields))
            return True

        return self.change(job_id, decide)

    def request_cancel(self, job_id: str, caller: Caller = ANONYMOUS) -> Record:
        """Cancel a queued job at once; ask the worker of one in progress to.

        Returns the job as it was before. Raises: RefusedError for one that the caller has not, and one that has ended.
        """

        def decide(pipe: Pipeline, record: Record | None) -> Record:
            if record is None or not caller.may_see(record.caller):
                raise RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id!r}")
            match record.status:
                case JobStatus.QUEUED:
                    self.cancel(pipe, record)
                case JobStatus.IN_PROGRESS:
                    # the flag is what counts; the message hastens it, and is lost while a worker restarts
                    pipe.hset(rq_registries.job_key(job_id), "adm_cancel", "1")
                    move(pipe, record, JobStatus.IN_PROGRESS, JobStatus.CANCELLING)
                    rq_registries.tell_to_stop(pipe, record)
                case JobStatus.CANCELLING:
                    pass
                case ended:
                    raise RefusedError(ErrorKind.JOB_ENDED, f"job {job_id} is {ended} already")
            return record

        return self.change(job_id, decide)

    def delete(self, job_id: str, member: str | None = None) -> Record | None:
        """Remove a job wherever it stands; a worker that holds it finds its token gone. None: there was no such job.

        member: only the job that has this place in the indexes, and no later one of its id.
        """

        def decide(pipe: Pipeline, record: Record | None) -> Record | None:
            if record is None or member not in (None, record.index_member):
                return None
            status = record.status
            if status in (JobStatus.IN_PROGRESS, JobStatus.CANCELLING):
                rq_registries.tell_to_stop(pipe, record)
                count_work(pipe, record, RUNNING, -1)
            elif status is JobStatus.QUEUED:
                count_work(pipe, record, record.priority, -1)
            rq_registries.forget(pipe, self.redis, record)
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
        """Requeue a job whose worker died, at no cost, or fail it where the deaths show that it was their cause."""

        def decide(pipe: Pipeline, record: Record | None) -> None:
            if record is None or record.token != token or record.status.is_final:
                pipe.zrem(keys.LEASES, f"{job_id}:{token}")
            elif record.cancel_requested:
                self.cancel(pipe, record)
            else:
                self._note_death(pipe, record)

        self.change(job_id, decide)

    def _note_death(self, pipe: Pipeline, record: Record) -> None:
        checkpoint = "" if record.checkpoint is None else record.checkpoint.sha256
        deaths = record.deaths.with_another(record.reached, checkpoint, self.now())
        log.warning("worker_died", job_id=record.id, worker=record.text("worker_name"), deaths=deaths.model_dump())
        if deaths.at_furthest >= self._deaths_alone:
            self.fail(pipe, record, FailureKind.WORKER_LOST, f"{deaths}; the workers' logs may say why")
            return
        expires_at = deaths.no_progress_since + self.retention_seconds  # not put off by each death, or it never expires
        if deaths.alone >= MANY_ALONE:
            log.warning("many_deaths_alone", job_id=record.id, deaths=deaths.alone, expires_at=expires_at)
        fields = {"adm_worker_deaths": deaths.model_dump_json()}
        if deaths.delay_seconds:
            due_at = self.now() + deaths.delay_seconds
            self.requeue_later(pipe, record, due_at, expires_at=expires_at, **fields)
        else:
            self.requeue(pipe, record, expires_at=expires_at, **fields)

    def recover_expired_leases(self) -> int:
        """Take back the jobs of workers that have been silent for longer than their lease; returns how many."""
        ended = cast(list[bytes], self.redis.zrangebyscore(keys.LEASES, "-inf", self.now()))
        for each in ended:
            if held := matched(EXECUTION, each):
                self.recover(held[1], held[2])
            else:
                log.warning("rubbish_among_leases", entry=repr(each[:80]))
                self.redis.zrem(keys.LEASES, each)
        return len(ended)

    def enqueue_due(self) -> None:
        """Let the jobs whose delay is over enter their queues."""
        now = self.now()
        named = (
            each.decode(errors="replace") for each in cast(set[bytes], self.redis.smembers(rq_registries.QUEUES_KEY))
        )
        queues = [name for each in named if QUEUE.fullmatch(name := each.removeprefix(rq_registries.queue_key("")))]
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrangebyscore(rq_registries.delayed_key(queue), "-inf", now)
            due = zip(queues, answers(pipe), strict=True)
        for queue, entries in due:
            for entry in entries or ():
                self._enqueue_due(queue, entry)

    def _enqueue_due(self, queue: str, entry: bytes) -> None:
        def decide(pipe: Pipeline, record: Record | None) -> None:
            if record is not None and record.is_delayed and record.queue == queue:
                self.enqueue_delayed(pipe, record)
            else:
                pipe.zrem(rq_registries.delayed_key(queue), entry)

        if matched(JOB_ID, entry):
            self.change(entry.decode(), decide)
        else:
            log.warning("rubbish_among_delayed", queue=queue, entry=repr(entry[:80]))
            self.redis.zrem(rq_registries.delayed_key(queue), entry)


def hash_of(redis: Redis, job_id: str) -> dict[bytes, bytes] | None:
    """A job's hash, empty where there is none; None where its key holds something else."""
    try:
        return cast(dict[bytes, bytes], redis.hgetall(rq_registries.job_key(job_id)))
    except ResponseError as error:
        if is_wrong_type(error):
            return None
        raise


def describe(request: ResolvedRequest, class_name: str | None) -> str:
    """What dashboards show; nothing of the caller's."""
    what = "" if request.kind == "generate" else f"{request.kind}, "
    return f"{what}{request.num_rows} x {class_name or 'no class'}, {request.steps} steps of {request.sampler}"


def encoded(value: Any) -> bytes:
    """A value as Redis stores it."""
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else repr(value)).encode()
