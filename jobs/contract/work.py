"""The work of a job, and the job's rank among others by its work.

The unit of work is the row step: one image through one step of one stage.
"""

from collections.abc import Mapping

from jobs.contract.request import ResolvedRequest
from vocabulary.priorities import PRIORITIES, PRIORITY_RATIO, Priority
from vocabulary.sampling import Direction, num_evaluations, steps_taken

RUNNING = "running"  # key in the counters of work, in addition to the priorities
PRIORITY_OCTAVES = PRIORITY_RATIO.bit_length() - 1


def work_of(request: ResolvedRequest) -> dict[str, int]:
    """Row steps of a job, by stage."""
    work = {stage: request.num_rows * evaluations for stage, evaluations in evaluations_of(request).items()}
    if request.kind == "interpolate" and request.images:
        # both pictures are encoded once, for all frames
        encoding = num_evaluations(request.sampler, request.steps, Direction.ENCODE)
        work["base"] = len(request.images) * encoding + request.n * request.steps
    return work


def evaluations_of(request: ResolvedRequest) -> dict[str, int]:
    """The engine's steps for each image, by stage: network evaluations, not steps of the sampler."""
    stages = {}
    match request.kind:
        case "score":
            return {"base": 1}
        case "reconstruct" | "interpolate" if request.images:
            stages["base"] = sum(num_evaluations(request.sampler, request.steps, each) for each in Direction)
        case "variation":
            stages["base"] = partial_evaluations(request.sampler, request.steps, request.strength)
        case "generate" | "interpolate":
            stages["base"] = num_evaluations(request.sampler, request.steps)
    if request.upsample:
        upsample = request.upsample
        stages["upsample"] = partial_evaluations(upsample.sampler, upsample.steps, upsample.strength)
    return stages


def evaluations_left(request: ResolvedRequest, done: float) -> dict[str, float]:
    """Mean number of remaining evaluations per image of a job, by stage; done: the share of all steps that is done."""
    stages = evaluations_of(request)
    left, ahead = {}, (1 - done) * sum(stages.values())
    for stage, evaluations in reversed(stages.items()):
        left[stage] = min(evaluations, ahead)
        ahead -= left[stage]
    return left


def partial_evaluations(sampler: str, steps: int, strength: float | None) -> int:
    """Evaluations of a sampler that takes a share of its steps."""
    return num_evaluations(sampler, steps_taken(steps, 1.0 if strength is None else strength))


def rank_of(priority: Priority, work: Mapping[str, int]) -> int:
    """A job's approximate place in the order of serving: the octave of its work.

    As in the engine's scheduler, jobs with little work go first; the next lower priority counts as PRIORITY_RATIO
    times the work.
    """
    return sum(work.values()).bit_length() + PRIORITY_OCTAVES * PRIORITIES.index(priority)
