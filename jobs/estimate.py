"""How long queued work will take, from what workers measured a step to cost.

The unit of work is the row step: one image through one step of one stage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jobs import keys
from jobs.fleet import Fleet, StepMs
from jobs.ledger import RUNNING
from jobs.request import ResolvedRequest
from jobs.samplers import num_evaluations

UNKNOWN_ERROR = 0.5  # of an estimate, as long as nothing was measured


def work_of(request: ResolvedRequest) -> dict[str, int]:
    """Row steps of a job, by stage."""
    work = {stage: request.num_rows * evaluations for stage, evaluations in evaluations_of(request).items()}
    if request.kind == "interpolate" and request.images:
        # both are encoded once, for all frames
        work["base"] = len(request.images) * (request.steps - 1) + request.n * request.steps
    return work


def evaluations_of(request: ResolvedRequest) -> dict[str, int]:
    """Steps of the engine that each image takes, by stage: network evaluations, not steps of its sampler."""
    stages = {}
    match request.kind:
        case "score":
            return {"base": 1}
        case "reconstruct":
            stages["base"] = 2 * request.steps - 1  # there and back; the way there begins on the first timestep
        case "interpolate" if request.images:
            stages["base"] = 2 * request.steps - 1
        case "variation":
            strength = 1.0 if request.strength is None else request.strength
            steps = math.ceil(round(strength * request.steps, 9))  # as the engine rounds it
            stages["base"] = num_evaluations(request.sampler, max(1, steps))
        case "generate" | "interpolate":
            stages["base"] = num_evaluations(request.sampler, request.steps)
    if request.upsample:
        stages["upsample"] = num_evaluations(request.upsample.sampler, request.upsample.steps)
    return stages


@dataclass(frozen=True)
class Backlog:
    """What a pipeline's counters say."""

    pipeline: str
    lengths: Mapping[str, int]  # jobs queued, by priority
    work: Mapping[str, int]  # row steps, by "priority:stage" and "running:stage"
    errors: tuple[float, ...]  # of recent estimates

    def of(self, where: str) -> dict[str, int]:
        """Row steps by stage of one priority, or of the jobs in progress."""
        return {
            stage: max(0, row_steps)
            for name, row_steps in self.work.items()
            for priority, _, stage in [name.partition(":")]
            if priority == where
        }

    @property
    def error(self) -> float:
        """Mean error of recent estimates, as a fraction."""
        return sum(self.errors) / len(self.errors) if self.errors else UNKNOWN_ERROR


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

    def eta_seconds(self, backlog: Backlog, request: ResolvedRequest, place: int) -> float | None:
        """Seconds until a job's images are there, for one at a place in the queue of its priority."""
        ahead: dict[str, float] = {stage: row_steps / 2 for stage, row_steps in backlog.of(RUNNING).items()}
        for priority in keys.PRIORITIES[: keys.PRIORITIES.index(request.priority)]:
            add(ahead, backlog.of(priority), 1)
        share = min(1, place / length) if (length := backlog.lengths[request.priority]) else 0
        add(ahead, backlog.of(request.priority), share)
        waiting = self.seconds(backlog.pipeline, ahead)
        if waiting is None:
            return None
        return waiting + self._run_seconds(backlog.pipeline, request, crowded=waiting > 0)

    def _run_seconds(self, pipeline: str, request: ResolvedRequest, *, crowded: bool) -> float:
        """Seconds from start to end: every step waits for its whole batch, whose size is the shape that runs."""
        step_ms = self._fleet.step_ms[pipeline]
        return (
            sum(
                evaluations * batch_ms(step_ms[stage], request.num_rows, crowded=crowded)
                for stage, evaluations in evaluations_of(request).items()
                if step_ms.get(stage)
            )
            / 1000
        )


def add(total: dict[str, float], work: Mapping[str, int], share: float) -> None:
    for stage, row_steps in work.items():
        total[stage] = total.get(stage, 0) + row_steps * share


def row_ms(step_ms: StepMs, stage: str) -> float:
    """Milliseconds a row step costs at the best shape; 0 for a stage that was not measured."""
    return min((ms / rows for rows, ms in step_ms.get(stage, {}).items()), default=0)


def batch_ms(shapes: Mapping[int, float], rows: int, *, crowded: bool) -> float:
    """Milliseconds a step takes for so many rows: at the largest shape when others run too, else at one that fits."""
    largest = max(shapes)
    fitting = largest if crowded else min((shape for shape in shapes if shape >= rows), default=largest)
    return shapes[fitting] * max(1, -(-rows // largest))
