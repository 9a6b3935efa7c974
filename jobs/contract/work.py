"""How much work a job is, and where that puts it among others.

The unit of work is the row step: one image through one step of one stage.
"""

import math
from collections.abc import Mapping

from jobs.contract.request import PRIORITIES, Priority, ResolvedRequest
from jobs.contract.samplers import num_evaluations

RUNNING = "running"  # in the counters of work, beside the priorities
PRIORITY_OCTAVES = 4


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


def evaluations_left(request: ResolvedRequest, done: float) -> dict[str, float]:
    """Evaluations that each image of a job has before it, on average, when a share of all its steps is done."""
    stages = evaluations_of(request)
    left, ahead = {}, (1 - done) * sum(stages.values())
    for stage, evaluations in reversed(stages.items()):
        left[stage] = min(evaluations, ahead)
        ahead -= left[stage]
    return left


def partial_evaluations(sampler: str, steps: int, strength: float | None) -> int:
    """Evaluations of a sampler that takes a share of its steps; rounded as the engine does."""
    share = 1.0 if strength is None else strength
    return num_evaluations(sampler, max(1, math.ceil(round(share * steps, 9))))


def rank_of(priority: Priority, work: Mapping[str, int]) -> int:
    """A job's place in the order of serving, roughly: the octave of its work.

    As the engine's scheduler has it, little work goes first, and a priority weighs as much as 16 times the work.
    """
    return sum(work.values()).bit_length() + PRIORITY_OCTAVES * PRIORITIES.index(priority)
