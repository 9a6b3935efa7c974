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
            stages["base"] = partial_evaluations(request.sampler, request.steps, request.strength)
        case "generate" | "interpolate":
            stages["base"] = num_evaluations(request.sampler, request.steps)
    if request.upsample:
        upsample = request.upsample
        stages["upsample"] = partial_evaluations(upsample.sampler, upsample.steps, upsample.strength)
    return stages


def partial_evaluations(sampler: str, steps: int, strength: float | None) -> int:
    """Evaluations of a sampler that takes a share of its steps; rounded as the engine does."""
    share = 1.0 if strength is None else strength
    return num_evaluations(sampler, max(1, math.ceil(round(share * steps, 9))))


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
        """Seconds until a job's images are there, for one at a place in the queue of its priority.

        What still has room in a batch joins the next step and shares every one of them; what has not waits for the
        work before it, of which the running part is half done on average.
        """
        step_ms = self._fleet.step_ms.get(backlog.pipeline)
        if not step_ms:
            return None
        queued: dict[str, float] = {}
        for priority in keys.PRIORITIES[: keys.PRIORITIES.index(request.priority)]:
            add(queued, backlog.of(priority), 1)
        share = min(1, place / length) if (length := backlog.lengths[request.priority]) else 0
        add(queued, backlog.of(request.priority), share)
        running = backlog.of(RUNNING)
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


def add(total: dict[str, float], work: Mapping[str, int], share: float) -> None:
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
