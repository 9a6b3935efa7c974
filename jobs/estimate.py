"""How long queued work will take, from what workers measured a step to cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median

from jobs import keys
from jobs.fleet import Fleet, StepMs
from jobs.request import ResolvedRequest
from jobs.work import RUNNING, evaluations_of, rank_of, work_of

UNKNOWN_ERROR = 0.5  # of an estimate, as long as nothing was measured
FEWEST_RATIOS = 8  # of jobs that have ended, before they correct what is reckoned for others


@dataclass(frozen=True)
class Backlog:
    """What a pipeline's counters say."""

    pipeline: str
    lengths: Mapping[str, int]  # jobs queued, by priority
    work: Mapping[str, int]  # row steps, by "priority:rank:stage" and "running:rank:stage"
    ratios: tuple[float, ...]  # of what recent jobs took, to what had been reckoned for them

    def of(self, where: str, before: float = math.inf) -> dict[str, float]:
        """Row steps by stage of one priority, or of the jobs in progress.

        before: only what goes before a job of this rank: lower ranks, and half of the same.
        """
        total: dict[str, float] = {}
        for name, row_steps in self.work.items():
            place, rank, stage = name.split(":")
            if place == where and int(rank) <= before:
                total[stage] = total.get(stage, 0) + max(0, row_steps) * (0.5 if int(rank) == before else 1)
        return total

    @property
    def bias(self) -> float:
        """What recent jobs took, of what had been reckoned: the median."""
        return median(self.ratios) if len(self.ratios) >= FEWEST_RATIOS else 1.0

    @property
    def error(self) -> float:
        """Mean error of recent estimates once their bias is taken out, as a fraction."""
        return mean(abs(ratio / self.bias - 1) for ratio in self.ratios) if self.ratios else UNKNOWN_ERROR


class Estimator:
    """Turns work into seconds; None as long as no worker ever said what a step costs."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def seconds(self, pipeline: str, work: Mapping[str, float]) -> float | None:
        """Seconds that the pipeline's workers take for so much work, batched as fully as they can."""
        step_ms = self._fleet.step_ms.get(pipeline)
        if not step_ms:
            return None
        workers = max(1, len(self._fleet.holders(pipeline)))
        return sum(row_steps * row_ms(step_ms, stage) for stage, row_steps in work.items()) / 1000 / workers

    def queued_seconds(self, backlog: Backlog, priority: str | None = None) -> float | None:
        """Seconds of work in a pipeline's queues, or in one of them."""
        total = 0.0
        for each in keys.PRIORITIES if priority is None else (priority,):
            seconds = self.seconds(backlog.pipeline, backlog.of(each))
            if seconds is None:
                return None
            total += seconds
        return total

    def eta_seconds(self, backlog: Backlog, request: ResolvedRequest) -> float | None:
        """Seconds until a job's images are there, reckoned from what is queued and running; not yet for `bias`.

        What still has room in a batch joins the next step and shares every one of them; what has not waits for the
        work that the scheduler puts before it, of which the running part is half done on average.
        """
        step_ms = self._fleet.step_ms.get(backlog.pipeline)
        if not step_ms:
            return None
        rank = rank_of(request.priority, work_of(request))
        queued: dict[str, float] = {}
        for priority in keys.PRIORITIES:
            add(queued, backlog.of(priority, rank), 1)
        running = backlog.of(RUNNING, rank)
        workers = max(1, len(self._fleet.holders(backlog.pipeline)))
        taken = {stage: (queued.get(stage, 0) + running.get(stage, 0)) / workers for stage in {*queued, *running}}
        waiting, seconds = 0.0, 0.0
        if not has_room(step_ms, request, taken):
            add(queued, running, 0.5)
            waiting = self.seconds(backlog.pipeline, queued) or 0.0
            taken = dict.fromkeys(step_ms, math.inf)
        for stage, evaluations in evaluations_of(request).items():
            if shapes := step_ms.get(stage):
                beside = math.ceil(min(taken.get(stage, 0) / evaluations, max(shapes)))
                seconds += evaluations * batch_ms(shapes, request.num_rows, beside) / 1000
        return waiting + seconds


def add(total: dict[str, float], work: Mapping[str, float], share: float) -> None:
    for stage, row_steps in work.items():
        total[stage] = total.get(stage, 0) + row_steps * share


def row_ms(step_ms: StepMs, stage: str) -> float:
    """Milliseconds a row step costs at the best shape; 0 for a stage that was not measured."""
    return min((ms / rows for rows, ms in step_ms.get(stage, {}).items()), default=0)


def has_room(step_ms: StepMs, request: ResolvedRequest, taken: Mapping[str, float]) -> bool:
    """Whether a job's images fit a batch beside so many row steps of others, whose images count as like its own."""
    return all(
        request.num_rows + math.ceil(taken.get(stage, 0) / evaluations) <= max(step_ms[stage])
        for stage, evaluations in evaluations_of(request).items()
        if step_ms.get(stage)
    )


def batch_ms(shapes: Mapping[int, float], rows: int, beside: int) -> float:
    """Milliseconds that a step of so many rows takes, with others in the same batch: what its shape takes."""
    largest = max(shapes)
    fitting = min((shape for shape in shapes if shape >= rows + beside), default=largest)
    return shapes[fitting] * max(1, -(-rows // largest))
