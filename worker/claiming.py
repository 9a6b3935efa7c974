"""Claims jobs from the queues: chooses the next job, checks that it fits, and keeps its claim until it ends."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from itertools import chain, zip_longest
from types import MappingProxyType
from uuid import uuid4

import structlog
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.errors import FailureKind
from jobs.contract.job import JobStatus
from jobs.contract.pipelines import PipelineInfo
from jobs.queue.ledger import Ledger
from jobs.redis import keys, rq_keys
from jobs.redis.payload import BadPayloadError, NewerPayloadError
from jobs.redis.record import Record, work_in
from jobs.redis.replies import answers, matched
from jobs.settings import Settings
from vocabulary.priorities import PRIORITIES, PRIORITY_RATIO, Priority
from worker.claim import Claim, WouldRun
from worker.job_spans import RELEASED, JobSpans
from worker.queue_metrics import QueueMetrics
from worker.reports import Reports

log = structlog.get_logger("worker.claiming")

LOOK_AHEAD = 32  # jobs inspected at each end of a queue whose first job waits for room
LOOK_AGAIN_SECONDS = 60.0  # between two looks at jobs that were left to newer workers


class Waits(Enum):
    """The reason why a job cannot be claimed yet."""

    FOR_ROOM = auto()
    TO_BE_ALONE = auto()
    FOR_NEWER_WORKER = auto()


class InFlight:
    """One worker's claims that have not ended, by job id. Reports and spans of a claim begin and end with it."""

    def __init__(self, reports: Reports, spans: JobSpans) -> None:
        self._claims: dict[str, Claim] = {}
        self._reports, self._spans = reports, spans
        self.has_released = True  # whether a claim was released since the last look behind the queues' heads

    @property
    def claims(self) -> MappingProxyType[str, Claim]:
        return MappingProxyType(self._claims)

    @property
    def runs_alone(self) -> bool:
        """Return whether one of the claims must run alone."""
        return any(each.alone for each in self._claims.values())

    def add(self, claim: Claim) -> None:
        """Add a claim. An earlier claim of its job was lost and is released."""
        if (lost := self._claims.get(claim.job_id)) is not None:
            self.release(lost)
        self._claims[claim.job_id] = claim
        self._reports.begin(claim)
        self._spans.claimed(claim)

    def release(self, claim: Claim) -> None:
        """Remove a claim, unless a later claim of its job has taken its place."""
        if self._claims.get(claim.job_id) is claim:
            del self._claims[claim.job_id]
            self.has_released = True  # room for jobs behind the heads
        self._reports.end(claim)
        self._spans.ended(claim, RELEASED)  # if the claim was lost and no status was written


class Claimer:
    """Claims jobs for one worker, and adds each claim to those in flight."""

    def __init__(
        self,
        redis: Redis,
        ledger: Ledger,
        settings: Settings,
        worker_name: str,
        pipelines: Sequence[PipelineInfo],
        in_flight: InFlight,
        metrics: QueueMetrics,
    ) -> None:
        self._redis, self._ledger, self._settings, self._name = redis, ledger, settings, worker_name
        self.pipelines, self._in_flight, self._metrics = tuple(pipelines), in_flight, metrics
        self._claimed: Counter[Priority] = Counter()  # jobs claimed from the heads of the queues
        self._left: set[str] = set()  # jobs left to newer workers in the last LOOK_AGAIN_SECONDS
        self._looks_again_at = 0.0

    def claim(self, room: int, spare: int, would_run: WouldRun) -> Iterator[Claim]:
        """Claim jobs for `room` images, high priority first; then, for `spare` images, jobs that would run at once.

        No job may pass one that must run alone; otherwise the worker would never be empty for it.
        """
        for queue, job_id in self._heads(room) if room > 0 else ():
            if room <= 0 or self._in_flight.runs_alone:
                break
            claim = self._try_to_claim(queue, job_id, room)
            if claim is Waits.TO_BE_ALONE:
                return
            if claim is Waits.FOR_ROOM:
                break
            if isinstance(claim, Claim):
                self._claimed[claim.request.priority] += 1
                room -= claim.request.num_rows
                yield claim
        yield from self._claim_beside(spare, would_run)

    def _claim_beside(self, spare: int, would_run: WouldRun) -> Iterator[Claim]:
        """Claim jobs that would run at once, past others that wait for room."""
        for pipeline, priority, job_id, work in self._waiting() if spare > 0 else []:
            if spare <= 0 or self._in_flight.runs_alone:
                return
            if would_run(pipeline, priority, work):
                claim = self._try_to_claim(keys.queue(pipeline, priority), job_id, spare)
                if isinstance(claim, Claim):
                    spare -= claim.request.num_rows
                    yield claim

    def _waiting(self) -> list[tuple[str, Priority, str, dict[str, int]]]:
        """The first and the last LOOK_AHEAD jobs of each queue, and their work.

        The last ones are needed because jobs that are too long to pass others gather at the head.
        """
        queues = [(each.id, priority) for priority in PRIORITIES for each in self.pipelines]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.lrange(rq_keys.queue_key(keys.queue(*queue)), 0, LOOK_AHEAD - 1)
                pipe.lrange(rq_keys.queue_key(keys.queue(*queue)), -LOOK_AHEAD, -1)
            entries = iter(answers(pipe))
            found = [
                (*queue, named[0])
                for queue in queues
                for entry in dict.fromkeys([*(next(entries) or ()), *(next(entries) or ())])
                if (named := matched(keys.JOB_ID, entry))
            ]
            for *_, job_id in found:
                pipe.hget(rq_keys.job_key(job_id), "adm_work")
            texts = zip(found, answers(pipe), strict=True)
            return [(*each, work) for each, text in texts if each[2] not in self._left and (work := work_in(text))]

    def _heads(self, most: int) -> Iterator[tuple[str, str]]:
        """The next jobs, each with its queue; pipelines of one priority alternate.

        Jobs left to newer workers are skipped, so that they delay no job behind them.
        """
        if time.monotonic() > self._looks_again_at:
            self._looks_again_at = time.monotonic() + LOOK_AGAIN_SECONDS
            self._left.clear()
        queues = [[keys.queue(each.id, priority) for each in self._rotated(priority)] for priority in PRIORITIES]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in chain(*queues):
                pipe.lrange(rq_keys.queue_key(queue), 0, most + len(self._left) - 1)
            entries = dict(zip(chain(*queues), answers(pipe), strict=True))
        waiting = []
        for one_priority in queues:
            alternating = zip_longest(*([(queue, entry) for entry in entries[queue] or ()] for queue in one_priority))
            waiting.append(deque(filter(None, chain(*alternating))))
        while waiting := [jobs for jobs in waiting if jobs]:
            queue, entry = waiting[priority_of_next(self._claimed.total(), len(waiting))].popleft()
            if matched(keys.JOB_ID, entry):
                if (job_id := entry.decode()) not in self._left:
                    yield queue, job_id
            else:
                log.warning("foreign_queue_entry", queue=queue, entry=repr(entry[:80]))
                self._redis.lrem(rq_keys.queue_key(queue), 0, entry)

    def _rotated(self, priority: Priority) -> tuple[PipelineInfo, ...]:
        first = self._claimed[priority] % len(self.pipelines)
        return self.pipelines[first:] + self.pipelines[:first]

    def _try_to_claim(self, queue: str, job_id: str, room: int) -> Claim | Waits | None:
        """Claim a job, or remove it from the queue if it must not run; otherwise return what it waits for.

        If a cancel or another worker changed the job meanwhile, the transaction runs again.
        """

        def decide(pipe: RedisPipeline, record: Record | None) -> Claim | Waits | None:
            if record is None or record.status is not JobStatus.QUEUED or record.queue != queue:
                pipe.lrem(rq_keys.queue_key(queue), 1, job_id)
                return None
            now = self._ledger.now()
            if now > record.expires_at > 0:
                self._ledger.transitions.expire(pipe, record)
                return None
            try:
                request = record.request()
            except NewerPayloadError as error:
                log.warning("left_to_newer_worker", job_id=job_id, why=str(error))
                self._left.add(job_id)
                return Waits.FOR_NEWER_WORKER
            except BadPayloadError as error:
                log.warning("bad_payload", job_id=job_id, error=str(error))
                self._ledger.transitions.fail(pipe, record, FailureKind.BAD_PAYLOAD, str(error))
                return None
            if record.deaths.runs_alone and self._in_flight.claims:
                return Waits.TO_BE_ALONE
            if room < request.num_rows <= self._settings.max_rows:
                return Waits.FOR_ROOM
            token = uuid4().hex
            self._ledger.transitions.claim(pipe, record, self._name, token, now + self._settings.lease_seconds)
            return Claim.of(record, token, request)

        claim = self._ledger.change(job_id, decide)
        if isinstance(claim, Claim):
            self._in_flight.add(claim)
            if claim.attempt == 1:
                waited = max(0.0, self._ledger.now() - claim.created_at)
                self._metrics.waited.labels(claim.request.model, claim.request.priority).observe(waited)
            log.info("claimed", **claim.ids, attempt=claim.attempt, alone=claim.alone)
        return claim


def priority_of_next(claimed: int, priorities: int) -> int:
    """Index of the priority from which the next job is claimed, among those that have jobs, highest first.

    Every 16th claim is from index 1, every 256th from index 2, in the proportion of SLACK_FACTORS in the engine.
    """
    claim = claimed + 1
    return min((claim % PRIORITY_RATIO == 0) + (claim % PRIORITY_RATIO**2 == 0), priorities - 1)
