"""The load for operators: queued and running jobs, by pipeline and by caller, and the number of ended jobs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field

from jobs.callers.keyring import KeyRecord
from jobs.contract.job import JobStatus, View
from jobs.redis import keys
from jobs.redis.reading import RedisReader
from jobs.redis.replies import answers
from jobs.views.estimate import Backlogs, Estimator
from jobs.views.fleet import Fleet, FleetReader
from jobs.views.job_views import ask_backlogs, take_backlogs
from vocabulary.priorities import PRIORITIES

log = structlog.get_logger("jobs.views.load")

MOST_CALLERS = 100  # shown at most, because each costs a count in the line of every pipeline
WINDOW_SECONDS = 60
UNFINISHED = (JobStatus.QUEUED, JobStatus.IN_PROGRESS, JobStatus.CANCELLING)
IMAGES, OCCUPANCY = "adm_images_total", "adm_batch_occupancy"  # of a worker's metrics


class PipelineLoad(View):
    id: str
    queued: int = Field(description="jobs")
    queued_seconds: float | None = Field(description="workers' time for these jobs; null before any step was measured")
    workers: int = Field(description="live workers that serve it")


class CallerLoad(View):
    id: str | None = Field(description="null: jobs that were made without a key")
    name: str | None
    queued: int = Field(description="jobs")
    in_progress: int
    queued_by_pipeline: dict[str, int] = Field(description="jobs; pipelines without any are left out")

    @property
    def unfinished(self) -> int:
        return self.queued + self.in_progress


class WorkerLoad(View):
    name: str
    images_completed: int = Field(description="of completed jobs, counted since it started; throughput is its growth")
    batch_occupancy: float | None = Field(
        description="share of its last step's rows that were images; null: no step yet"
    )


class QueueLoad(View):
    """The queue, for operators."""

    object: Literal["queue"] = "queue"
    in_progress: int = Field(description="jobs of all callers")
    pipelines: list[PipelineLoad]
    callers: list[CallerLoad] = Field(description="those that have jobs queued or in progress, most jobs first")
    callers_left_out: int = Field(description="callers with fewer jobs, where there are more than 100")
    ended_in_last_minute: int = Field(description="jobs that were completed, failed, cancelled or expired")
    workers: list[WorkerLoad] = Field(description="live workers, from their metrics")


class LoadReader:
    """Reads the load of the queue."""

    def __init__(self, redis: RedisReader, fleet: FleetReader, retention_seconds: int) -> None:
        self._redis, self._fleet, self._retention_seconds = redis, fleet, retention_seconds

    def read(self, callers: Sequence[KeyRecord], now: float) -> QueueLoad:
        """The load of all callers; `now`: Redis' time."""
        fleet = self._fleet.read()
        names = list(fleet.pipelines)
        with self._redis.pipeline(transaction=False) as pipe:
            ask_backlogs(pipe, fleet, names)
            # the scores are the times of removal
            pipe.zcount(keys.ENDED, now - WINDOW_SECONDS + self._retention_seconds, "+inf")
            for caller_id in ("", *(each.id for each in callers)):  # "": all jobs
                for status in UNFINISHED:
                    pipe.zcard(keys.index(status, caller_id))
            replies = iter(answers(pipe))
        backlogs, ended = take_backlogs(replies, fleet, names), next(replies) or 0
        counts = [tuple(next(replies) or 0 for _ in UNFINISHED) for _ in range(len(callers) + 1)]
        loads = [caller_load(each, *numbers) for each, numbers in zip(callers, counts[1:], strict=True)]
        busy = sorted((each for each in loads if each.unfinished), key=lambda each: each.unfinished, reverse=True)
        shown = self._with_pipelines(busy[:MOST_CALLERS], names)
        queued = Counter({each: sum(backlogs.of(each).lengths.values()) for each in names})
        return QueueLoad(
            in_progress=sum(counts[0][1:]),
            pipelines=pipeline_loads(fleet, backlogs, queued),
            callers=[*shown, *without_key(counts, queued, shown)],
            callers_left_out=len(busy) - len(shown),
            ended_in_last_minute=ended,
            workers=self._workers(),
        )

    def _with_pipelines(self, loads: Sequence[CallerLoad], names: Sequence[str]) -> list[CallerLoad]:
        """The loads of callers, with their queued jobs by pipeline."""
        with self._redis.pipeline(transaction=False) as pipe:
            for each in loads:
                for name in names:
                    for priority in PRIORITIES:
                        pipe.zcard(keys.own_line(keys.queue(name, priority), str(each.id)))
            replies = iter(answers(pipe))
        found = []
        for each in loads:
            queued = {name: sum(next(replies) or 0 for _ in PRIORITIES) for name in names}
            found.append(each.model_copy(update={"queued_by_pipeline": without_zeros(queued)}))
        return found

    def _workers(self) -> list[WorkerLoad]:
        """The loads of the live workers, from their metrics."""
        return [worker_load(name, snapshot) for name, snapshot in self._fleet.metrics().items()]


def worker_load(name: str, snapshot: str) -> WorkerLoad:
    """A worker's load from its metrics; an empty load if they cannot be read."""
    images, occupancy = 0, None
    try:
        for family in text_string_to_metric_families(snapshot):
            for each in family.samples:
                if each.name == IMAGES:
                    images += int(each.value)
                elif each.name == OCCUPANCY:
                    occupancy = each.value
    except (ValueError, OverflowError) as error:  # also for a text that is not a number
        log.warning("not_understood", key="metrics", name=name, error=str(error)[:80])
    return WorkerLoad(name=name, images_completed=images, batch_occupancy=occupancy)


def caller_load(caller: KeyRecord, queued: int, in_progress: int, cancelling: int) -> CallerLoad:
    return CallerLoad(
        id=caller.id, name=caller.name, queued=queued, in_progress=in_progress + cancelling, queued_by_pipeline={}
    )


def pipeline_loads(fleet: Fleet, backlogs: Backlogs, queued: Counter[str]) -> list[PipelineLoad]:
    estimator = Estimator(fleet)
    found = []
    for name in fleet.pipelines:
        seconds = [estimator.own_seconds(backlogs.of(name), priority) for priority in PRIORITIES]
        known = [each for each in seconds if each is not None]
        found.append(
            PipelineLoad(
                id=name,
                queued=queued[name],
                queued_seconds=round(sum(known), 3) if known else None,
                workers=len(fleet.workers_of(name)),
            )
        )
    return found


def without_key(
    counts: Sequence[tuple[int, ...]], queued: Counter[str], keyed: Sequence[CallerLoad]
) -> list[CallerLoad]:
    """The load of jobs without a key, if there are any: the counts of all jobs minus those of callers.

    counts: of all jobs, then of each caller, by status.
    """
    waiting, *running = (all_jobs - sum(theirs) for all_jobs, *theirs in zip(*counts, strict=True))
    if waiting + sum(running) <= 0:
        return []
    by_pipeline = queued.copy()
    for each in keyed:
        by_pipeline.subtract(each.queued_by_pipeline)
    left = without_zeros(by_pipeline) if waiting > 0 else {}
    return [
        CallerLoad(
            id=None, name=None, queued=max(0, waiting), in_progress=max(0, sum(running)), queued_by_pipeline=left
        )
    ]


def without_zeros(numbers: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number > 0}
