"""What is told of the samplers, against what the engine does."""

import pytest

from diffusion import solvers
from diffusion.grids import TIME_GRIDS
from diffusion.tables import THRESHOLDINGS
from engine.sampling import SAMPLERS
from jobs.request import JobRequest
from jobs.samplers import SAMPLER_NOTES, num_evaluations


def test_every_sampler_of_the_engine_has_a_note_and_no_other() -> None:
    assert {each.name for each in SAMPLER_NOTES} == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 25, 1000])
def test_evaluations_are_those_of_the_table(sampler: str, steps: int) -> None:
    assert num_evaluations(sampler, steps) == solvers.num_evaluations(sampler, steps)


def test_request_knows_the_engines_grids_and_thresholds() -> None:
    for time_grid in TIME_GRIDS:
        for thresholding in THRESHOLDINGS:
            JobRequest(time_grid=time_grid, thresholding=thresholding)
    schema = JobRequest.model_json_schema()["properties"]
    assert schema["time_grid"]["enum"] == list(TIME_GRIDS)
    assert schema["thresholding"]["enum"] == list(THRESHOLDINGS)
