"""The reports of a job in the engine about its images."""

import torch

from diffusion.tables import COLUMNS, SamplerTable
from engine.steps import Finished
from engine.trajectory import ImageRequest, StagePlan, Trajectory
from jobs.contract.job import Progress
from jobs.contract.request import JobRequest
from jobs.contract.resolution import resolve
from tests.jobs.samples import DEMO
from vocabulary.sampling import Direction
from worker.attempts import Attempt
from worker.claim import Claim
from worker.job_plans import JobPlan

PLANS = (StagePlan("base", "ddim", 3), StagePlan("upsample", "ddim", 2))


def trajectories() -> list[Trajectory]:
    table = SamplerTable(torch.zeros(3, len(COLUMNS)), torch.arange(3), torch.arange(3))
    return [Trajectory(ImageRequest("job", index, 0, PLANS), table, torch.zeros(3, 8, 8)) for index in range(2)]


def test_image_ahead_of_its_job_is_reported_at_its_own_step() -> None:
    first, second = trajectories()
    request = resolve(JobRequest(class_label=4, n=2), DEMO, lambda: 0)
    attempt = Attempt(Claim("job", "token", request, 1, False, None, 0.0), JobPlan([first.request, second.request]))
    for _ in range(3):
        attempt.moved(first, "base", 0.1)
    attempt.moved(second, "base", 0.1)
    attempt.moved(first, "upsample", 0.1)
    assert attempt.reached(0) == (1, 2)
    assert attempt.reached(1) == (1, 3)
    assert attempt.progress() == Progress(stage="base", step=1, steps=3, fraction=0.5)


def test_progress_of_frames_is_not_held_back_by_the_encodings_behind_them() -> None:
    plan = StagePlan("base", "ddim", 3, direction=Direction.ENCODE), StagePlan("base", "ddim", 3)
    ends = [ImageRequest("job", index, 0, plan[:1]) for index in (1, 2)]
    frame = ImageRequest("job", 0, 0, plan[1:])
    request = resolve(JobRequest(kind="interpolate", seeds=[1, 2], class_label=4, n=2), DEMO, lambda: 0)
    attempt = Attempt(Claim("job", "token", request, 1, False, None, 0.0), JobPlan(ends, [frame]))
    table = SamplerTable(torch.zeros(3, len(COLUMNS)), torch.arange(3), torch.arange(3))
    trajectories = {each.index: Trajectory(each, table, torch.zeros(3, 8, 8)) for each in (*ends, frame)}
    for _ in range(2):
        for each in ends:
            attempt.moved(trajectories[each.index], "base", 0.1)
    frames = [attempt.encoded(Finished(each, torch.full((3, 8, 8), each.index), torch.zeros(3, 8, 8))) for each in ends]
    assert [len(each) for each in frames] == [0, 1]
    assert attempt.progress() == Progress(stage="base", step=2, steps=2, fraction=4 / 7)
    attempt.moved(trajectories[0], "base", 0.1)
    assert attempt.progress() == Progress(stage="base", step=1, steps=3, fraction=5 / 7)
