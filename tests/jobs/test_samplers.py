"""What is told of the samplers, against what the engine does."""

import pytest

from diffusion import grids, solvers
from diffusion.grids import TIME_GRIDS
from diffusion.tables import THRESHOLDINGS
from engine.sampling import SAMPLERS
from jobs.contract.request import JobRequest
from jobs.contract.samplers import SAMPLER_NOTES, default_grid, num_evaluations


def test_every_sampler_of_the_engine_has_a_note_and_no_other() -> None:
    assert {each.name for each in SAMPLER_NOTES} == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25, 1000])
def test_evaluations_are_those_of_the_table(sampler: str, steps: int) -> None:
    assert num_evaluations(sampler, steps) == solvers.num_evaluations(sampler, steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])
def test_own_grid_of_a_sampler_is_the_engines(sampler: str, num_timesteps: int) -> None:
    for steps in range(1, num_timesteps + 1):
        assert default_grid(sampler, steps, num_timesteps) == grids.default_grid(sampler, steps, num_timesteps)


def test_request_knows_the_engines_grids_and_thresholds() -> None:
    for time_grid in TIME_GRIDS:
        for thresholding in THRESHOLDINGS:
            JobRequest(time_grid=time_grid, thresholding=thresholding)
    schema = JobRequest.model_json_schema()["properties"]
    assert schema["time_grid"]["anyOf"][0]["enum"] == list(TIME_GRIDS)
    assert schema["thresholding"]["enum"] == list(THRESHOLDINGS)
