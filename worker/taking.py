"""Taking jobs from the queues: which is next, whether it fits, and the claim that makes it this worker's."""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain, zip_longest
from uuid import uuid4

import structlog
from redis.client import Pipeline, Redis

from engine.scheduler import PATIENCE
from jobs.contract.errors import FailureKind
from jobs.contract.job import CheckpointRecord, ImageRecord, JobStatus
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import PRIORITIES, Priority, ResolvedRequest
from jobs.queue import keys, rq_registries
from jobs.queue.ledger import Ledger
from jobs.queue.payload import BadPayloadError, NewerPayloadError
from jobs.queue.record import Record
from jobs.queue.rubbish import JOB_ID, answers, matched
from jobs.queue.soundness import is_readable
from jobs.settings import Settings
from tracing.propagation import trace_id_of
from worker.queue_metrics import QueueMetrics

log = structlog.get_logger("worker.taking")

LOOK_AHEAD = 32  # jobs from each end of a queue in which others wait for room
LOOK_AGAIN_SECONDS = 60.0  # at jobs that were left to newer workers
TURN = int(PATIENCE["low"] / PATIENCE["normal"])  # claims of which one is the next lower priority's


@dataclass(frozen=True)
class Claim:
    """The right to run one job and write its results, as long as its token stands in the job."""

    job_id: str
    token: str
    request: ResolvedRequest
    attempt: int
    alone: bool  # workers died with it and others in flight: run nothing beside it
    class_name: str | None
    created_at: float
    checkpoint: CheckpointRecord | None = None  # of an earlier attempt
    published: tuple[ImageRecord, ...] = ()  # by earlier attempts
    request_id: str = ""  # of the HTTP request that queued it
    traceparent: str = ""  # of that request's trace

    @property
    def ids(self) -> dict[str, str]:
        """What log lines about it carry."""
        told = {"job_id": self.job_id, "request_id": self.request_id, "trace_id": trace_id_of(self.traceparent)}
        return {name: value for name, value in told.items() if value}


class Waits(Enum):
    """For what a job waits that is not to be claimed yet."""

    FOR_ROOM = auto()
    TO_BE_ALONE = auto()
    FOR_NEWER_WORKER = auto()


@dataclass(frozen=True)
class Submit:
    claim: Claim


@dataclass(frozen=True)
class Cancel:
    job_id: str


WouldRun = Callable[[str, Priority, Mapping[str, int]], bool]  # of a job's pipeline, priority and row steps by stage


class Taker:
    """Takes jobs for one worker; holds no claim itself."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        settings: Settings,
        worker_name: str,
        pipelines: Sequence[PipelineInfo],
        metrics: QueueMetrics,
    ) -> None:
        self._redis, self._ledger, self._settings, self._name = redis, ledger, settings, worker_name
        self._pipelines, self._metrics = tuple(pipelines), metrics
        self._claimed: Counter[Priority] = Counter()  # from the heads
        self._left: set[str] = set()  # jobs that only newer workers understand, as found in the last LOOK_AGAIN_SECONDS
        self._looks_again_at = 0.0

    def take(self, room: int, spare: int, would_run: WouldRun, in_flight: Mapping[str, Claim]) -> Iterator[Claim]:
        """Claim jobs for so many images, high priority first; then, into `spare`, those that would run at once.

        Nothing is let past a job that is to run alone, or the worker would never be empty for it. The caller enters
        each claim into `in_flight`, by its job, before it asks for the next.
        """
        for queue, job_id in self._heads(room) if room > 0 else ():
            if room <= 0 or runs_alone(in_flight):
                break
            claim = self._try_to_claim(queue, job_id, room, busy=bool(in_flight))
            if claim is Waits.TO_BE_ALONE:
                return
            if claim is Waits.FOR_ROOM:
                break
            if isinstance(claim, Claim):
                self._claimed[claim.request.priority] += 1
                room -= claim.request.num_rows
                yield claim
        yield from self._take_beside(spare, would_run, in_flight)

    def _take_beside(self, spare: int, would_run: WouldRun, in_flight: Mapping[str, Claim]) -> Iterator[Claim]:
        """Claim jobs past others that wait for room."""
        for pipeline, priority, job_id, work in self._waiting() if spare > 0 else []:
            if spare <= 0 or runs_alone(in_flight):
                return
            if would_run(pipeline, priority, work):
                claim = self._try_to_claim(keys.queue(pipeline, priority), job_id, spare, busy=bool(in_flight))
                if isinstance(claim, Claim):
                    spare -= claim.request.num_rows
                    yield claim

    def _waiting(self) -> list[tuple[str, Priority, str, dict[str, int]]]:
        """The first and the newest jobs of each queue, and their work.

        The newest too: at the head those gather that are too long to be let past.
        """
        queues = [(each.id, priority) for priority in PRIORITIES for each in self._pipelines]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lrange(rq_registries.queue_key(keys.queue(*queue)), 0, LOOK_AHEAD - 1)
                pipe.lrange(rq_registries.queue_key(keys.queue(*queue)), -LOOK_AHEAD, -1)
            entries = iter(answers(pipe))
            found = [
                (*queue, named[0])
                for queue in queues
                for entry in dict.fromkeys([*(next(entries) or ()), *(next(entries) or ())])
                if (named := matched(JOB_ID, entry))
            ]
            for *_, job_id in found:
                pipe.hget(rq_registries.job_key(job_id), "adm_work")
            told = zip(found, answers(pipe), strict=True)
            readable = [(each, work) for each, work in told if work and is_readable("adm_work", work)]
            return [(*each, json.loads(work)) for each, work in readable if each[2] not in self._left]

    def _heads(self, most: int) -> Iterator[tuple[str, str]]:
        """The jobs that are next, each with its queue; pipelines of one priority take turns.

        Jobs left to newer workers are passed over, so that they hold up no job behind them.
        """
        if time.monotonic() > self._looks_again_at:
            self._looks_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
            self._left.clear()
        queues = [[keys.queue(each.id, priority) for each in self._in_turn(priority)] for priority in PRIORITIES]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in chain(*queues):
                pipe.lrange(rq_registries.queue_key(queue), 0, most + len(self._left) - 1)
            entries = dict(zip(chain(*queues), answers(pipe), strict=True))
        lines = []
        for one_priority in queues:
            in_turns = zip_longest(*([(queue, entry) for entry in entries[queue] or ()] for queue in one_priority))
            lines.append(deque(filter(None, chain(*in_turns))))
        while lines := [line for line in lines if line]:
            queue, entry = lines[line_of_next(self._claimed.total(), len(lines))].popleft()
            if matched(JOB_ID, entry):
                if (job_id := entry.decode()) not in self._left:
                    yield queue, job_id
            else:
                log.warning("rubbish_in_queue", queue=queue, entry=repr(entry[:80]))
                self._redis.lrem(rq_registries.queue_key(queue), 0, entry)

    def _in_turn(self, priority: Priority) -> tuple[PipelineInfo, ...]:
        turn = self._claimed[priority] % len(self._pipelines)
        return self._pipelines[turn:] + self._pipelines[:turn]

    def _try_to_claim(self, queue: str, job_id: str, room: int, *, busy: bool) -> Claim | Waits | None:
        """Claim a job, or drop it from the queue if it is not to be run; else for what it waits.

        Whoever changed the job meanwhile, a cancel or another worker, makes the transaction run again.
        """

        def decide(pipe: Pipeline, record: Record | None) -> Claim | Waits | None:
            if record is None or record.status is not JobStatus.QUEUED or record.queue != queue:
                pipe.lrem(rq_registries.queue_key(queue), 1, job_id)
                return None
            now = self._ledger.now()
            if now > record.expires_at > 0:
                self._ledger.expire(pipe, record)
                return None
            try:
                request = record.request()
            except NewerPayloadError as error:
                log.warning("left_to_newer_worker", job_id=job_id, why=str(error))
                self._left.add(job_id)
                return Waits.FOR_NEWER_WORKER
            except BadPayloadError as error:
                log.warning("bad_payload", job_id=job_id, error=str(error))
                self._ledger.fail(pipe, record, FailureKind.BAD_PAYLOAD, str(error))
                return None
            if record.deaths.runs_alone and busy:
                return Waits.TO_BE_ALONE
            if room < request.num_rows <= self._settings.max_rows:
                return Waits.FOR_ROOM
            token = uuid4().hex
            self._ledger.claim(pipe, record, self._name, token, now + self._settings.lease_seconds)
            class_name = record.text("adm_class_name") or None
            return Claim(
                job_id,
                token,
                request,
                record.starts + 1,
                record.deaths.runs_alone,
                class_name,
                record.created_at,
                record.checkpoint,
                tuple(record.images),
                record.text("adm_request_id"),
                record.text("adm_traceparent"),
            )

        claim = self._ledger.change(job_id, decide)
        if isinstance(claim, Claim):
            if claim.attempt == 1:
                waited = max(0.0, self._ledger.now() - claim.created_at)
                self._metrics.waited.labels(claim.request.model, claim.request.priority).observe(waited)
            log.info("claimed", **claim.ids, attempt=claim.attempt, alone=claim.alone)
        return claim


def runs_alone(in_flight: Mapping[str, Claim]) -> bool:
    """Whether one of the claims suffers no other beside it."""
    return any(each.alone for each in in_flight.values())


def line_of_next(claimed: int, lines: int) -> int:
    """From which line the next job is claimed, of those with jobs in them, the highest priority's being 0.

    Every 16th claim is of the next lower one, every 256th of the one below, as patience weighs them once they are in.
    """
    turn = claimed + 1
    return min((turn % TURN == 0) + (turn % TURN**2 == 0), lines - 1)
