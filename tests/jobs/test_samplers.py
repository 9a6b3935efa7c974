"""The notes on samplers against the engine's behaviour."""

import pytest

from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from engine.sampler_tables import build_table
from engine.trajectory import StagePlan
from jobs.contract.request import JobRequest
from jobs.contract.samplers import SAMPLER_NOTES
from vocabulary.sampling import (
    SAMPLERS,
    SECOND_ORDER,
    THRESHOLDINGS,
    TIME_GRIDS,
    Direction,
    num_evaluations,
)

PROCESS = DiffusionProcess(Schedule.named("linear", 1000))


def test_every_sampler_has_a_note_and_no_other() -> None:
    assert {each.name for each in SAMPLER_NOTES} == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25, 1000])
def test_evaluations_are_the_rows_of_the_table(sampler: str, steps: int) -> None:
    assert num_evaluations(sampler, steps) == len(build_table(PROCESS, StagePlan("", sampler, steps)))


@pytest.mark.parametrize("steps", [2, 25, 990])
def test_evaluations_of_an_encoding_are_the_rows_of_its_table(steps: int) -> None:
    plan = StagePlan("", "ddim", steps, direction=Direction.ENCODE)
    assert num_evaluations("ddim", steps, Direction.ENCODE) == plan.num_evaluations == len(build_table(PROCESS, plan))


def test_note_of_a_sampler_has_its_order_and_its_evaluations() -> None:
    for note in SAMPLER_NOTES:
        assert (note.order == 2) == (note.name in SECOND_ORDER)
        assert num_evaluations(note.name, 100) == 100 + (note.evaluations_per_step - 1) * 99


def test_request_knows_every_grid_and_threshold() -> None:
    for time_grid in TIME_GRIDS:
        for thresholding in THRESHOLDINGS:
            JobRequest(time_grid=time_grid, thresholding=thresholding)
