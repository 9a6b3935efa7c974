"""Grids through a real worker: a cell has the image of the same job without a grid, and all run at the same time."""

import json
from typing import Any

import pytest

from jobs.contract.caller import ANONYMOUS
from jobs.contract.grids import GridRequest
from jobs.contract.job import Job
from jobs.queue.submitting import ItemsSubmission
from tests.worker.programs import Client

pytestmark = pytest.mark.slow

Axis = dict[str, Any]
AXES = [
    ({"field": "guidance_scale", "values": [0, 1, 2.5, 8]}, {"field": "steps", "values": [10, 25]}),
    ({"field": "sampler", "values": ["ddpm", "ddim", "dpmpp_2m", "heun"]}, {"field": "class_label", "values": [1, 2]}),
    ({"field": "eta", "values": [0, 0.5, 1]}, {"field": "thresholding", "values": ["clip", "dynamic"]}),
]


def make(client: Client, body: dict[str, object]) -> list[Job]:
    """The jobs of a grid, ended, row by row."""
    submission = ItemsSubmission(GridRequest.parse(json.dumps(body).encode()), ANONYMOUS)
    return client.wait_all([each.job.id for each in client.queue.submitter.submit_items(submission)])


@pytest.mark.parametrize(("x", "y"), AXES)
def test_each_cell_has_the_bytes_of_the_single_job_with_its_settings(warm: Client, x: Axis, y: Axis) -> None:
    fields = {x["field"], y["field"]}
    common: dict[str, object] = {"class_label": 3, "sampler": "ddim", "seed": 5}
    common = {name: value for name, value in common.items() if name not in fields}
    cells = make(warm, common | {"x": x, "y": y})
    places = [(a, b) for b in y["values"] for a in x["values"]]
    for job, (a, b) in zip(cells, places, strict=True):
        (alone,) = warm.wait_all([warm.post(common | {x["field"]: a, y["field"]: b})])
        assert warm.bytes_of(job) == warm.bytes_of(alone)
    assert len({warm.bytes_of(job)[0] for job in cells}) == len(cells)


def test_all_cells_are_in_the_engine_at_once(warm: Client) -> None:
    """The worker of these tests has room for eight images, which is what the grid has."""
    x, y = {"field": "steps", "values": [100, 150]}, {"field": "seed", "values": [1, 2, 3, 4]}
    jobs = make(warm, {"class_label": 1, "upsample": False, "x": x, "y": y})
    started = [each.started_at for each in jobs if each.started_at is not None]
    ended = [each.ended_at for each in jobs if each.ended_at is not None]
    assert (len(started), len(ended)) == (8, 8)
    assert max(started) < min(ended)
