"""Grids over HTTP: a job for each cell, all of them queued or none, and one labelled sheet."""

import io
from typing import Any

import httpx2
import pytest
from PIL import Image

from jobs.settings import Settings
from tests.service.conftest import MakeKey, ToyWorker, running_service
from tests.service.test_jobs import is_problem

X = {"field": "guidance_scale", "values": [0, 1, 2.5]}
Y = {"field": "steps", "values": [10, 25]}


def grid(**fields: Any) -> dict[str, Any]:
    return {"class_label": "torus", "x": X, "y": Y} | fields


def test_each_cell_is_a_job_with_the_values_of_its_place_and_the_seed_of_all(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    answer = client.post("/v1/grids", json=grid(metadata={"run": "7"}))
    assert answer.status_code == 202
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/grids/{made['id']}"
    assert (made["object"], made["id"]) == ("grid", made["cells"][0]["job"]["id"])
    assert (made["x"]["field"], made["y"]["values"]) == ("guidance_scale", [10, 25])
    places = [(each["x"], each["y"]) for each in made["cells"]]
    assert places == [(0, 10), (1, 10), (2.5, 10), (0, 25), (1, 25), (2.5, 25)]
    requests = [each["job"]["request"] for each in made["cells"]]
    assert [(each["guidance_scale"], each["steps"]) for each in requests] == places
    assert len({each["seed"] for each in requests}) == 1
    assert {str(each["metadata"]) for each in requests} == {"{'run': '7'}"}
    assert client.get(f"/v1/grids/{made['id']}").json()["cells"][5]["job"]["id"] == made["cells"][5]["job"]["id"]


def test_grid_of_one_axis_is_a_row(client: httpx2.Client, fleet: ToyWorker) -> None:
    made = client.post("/v1/grids", json={"x": {"field": "class_label", "values": ["torus", 3, None]}}).json()
    assert made["y"] is None
    assert [each["job"]["request"]["class_label"] for each in made["cells"]] == [4, 3, None]


def test_answer_waits_for_all_cells(client: httpx2.Client, worker: ToyWorker) -> None:
    answer = client.post("/v1/grids", json=grid(), headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=30")
    made = answer.json()
    assert (made["completed"], made["ended"]) == (6, 6)
    assert client.get(f"/v1/grids/{made['id']}?wait=30").json() == made


@pytest.mark.parametrize(
    ("given", "pointer", "detail"),
    [
        (grid(x={"field": "guidance_scale", "values": [1, 60]}), "/x/values/1", "guidance_scale 60: "),
        (grid(y={"field": "steps", "values": [10, 2000]}), "/y/values/1", "steps 2000: must be from 1 to 1000"),
        (grid(y={"field": "steps", "values": ["many"]}), "/y/values/0", 'steps "many": '),
        (grid(x={"field": "sampler", "values": ["ddim", "euler"]}), "/x/values/1", 'sampler "euler": unknown sampler'),
        (grid(y={"field": "sampler", "values": [None]}), "/y/values/0", "sampler null: must not be null"),
        (grid(x={"field": "steps", "values": [7]}), "/y/field", "steps is already the field of axis x"),
        (grid(x={"field": "eta", "values": [0, 0.0]}), "/x/values/1", "is given twice"),
        (grid(x={"field": "class_label", "values": ["torus"]}), "/class_label", "is already the field of axis x"),
        (grid(x={"field": "model", "values": ["demo"]}), "/x/field", ""),
        (grid(x={"field": "steps", "values": []}, y=None), "/x/values", ""),
        (grid(x={"field": "steps", "values": [True]}, y=None), "/x/values/0", ""),
        (grid(x={"field": "seed", "values": list(range(33))}), "/x/values", "66 cells; the limit is 64 (ADM_MAX_GRID"),
        (grid(n=2), "/n", "one image"),
        (grid(kind="interpolate", seeds=[1, 2]), "/kind", "one image"),
        (grid(items=[{}]), "/items", "unknown field"),
        (grid(class_label="no such"), "/class_label", "unknown class"),
    ],
)
def test_wrong_axis_or_value_is_named_and_nothing_is_queued(
    client: httpx2.Client, fleet: ToyWorker, given: dict[str, Any], pointer: str, detail: str
) -> None:
    answer = client.post("/v1/grids", json=given)
    assert is_problem(answer, 422, pointer)
    assert detail in next(each["detail"] for each in answer.json()["errors"] if each["pointer"] == pointer)
    assert client.get("/v1/jobs").json()["data"] == []


def test_fault_of_a_value_is_reported_once(client: httpx2.Client, fleet: ToyWorker) -> None:
    given = grid(sampler="ddpm", x={"field": "eta", "values": [0, 0.5]})
    (error,) = client.post("/v1/grids", json=given).json()["errors"]
    assert error == {"pointer": "/x/values/1", "detail": "eta 0.5: applies only to ddim; ddpm has no eta"}


def test_key_stands_for_the_grid(client: httpx2.Client, fleet: ToyWorker) -> None:
    key = {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/grids", json=grid(), headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [each["job"]["id"] for each in again.json()["cells"]] == [
        each["job"]["id"] for each in first.json()["cells"]
    ]
    assert is_problem(client.post("/v1/grids", json=grid(seed=1), headers=key), 422)


def test_sheet_is_one_labelled_picture_of_all_cells(client: httpx2.Client, worker: ToyWorker) -> None:
    made = client.post("/v1/grids", json=grid(seed=7), headers={"Prefer": "wait=30"}).json()
    answer = client.get(made["sheet_url"])
    sheet = Image.open(io.BytesIO(answer.content))
    assert (answer.headers["Content-Type"], sheet.format) == ("image/png", "PNG")
    assert sheet.width > 3 * 96
    assert sheet.height > 2 * 96
    colours = {colour for _, colour in sheet.getcolors(1 << 16) or ()}
    assert (0, 0, 0) in colours, "the toy worker's image, which is black"
    assert len(colours) > 3, "labels are drawn"
    again = client.get(made["sheet_url"], headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    small = client.get(made["sheet_url"], params={"size": 64}, headers={"Accept": "image/webp"})
    picture = Image.open(io.BytesIO(small.content))
    assert (picture.format, max(picture.size)) == ("WEBP", 64)
    assert small.headers["ETag"] != answer.headers["ETag"]


def test_sheet_waits_for_all_cells_and_shows_what_became_of_each(client: httpx2.Client, fleet: ToyWorker) -> None:
    made = client.post("/v1/grids", json=grid()).json()
    assert made["sheet_url"] is None
    assert is_problem(client.get(f"/v1/grids/{made['id']}/sheet"), 409)
    client.post(f"/v1/jobs/{made['cells'][1]['job']['id']}/cancel")
    client.delete(f"/v1/jobs/{made['cells'][2]['job']['id']}")
    fleet.release()
    ended = client.get(f"/v1/grids/{made['id']}?wait=30").json()
    assert (ended["completed"], ended["ended"]) == (4, 6)
    assert ended["cells"][1]["job"]["status"] == "cancelled"
    assert ended["cells"][2]["job"] is None
    assert client.get(ended["sheet_url"]).status_code == 200


def test_grid_is_cancelled_and_removed_as_a_whole(client: httpx2.Client, fleet: ToyWorker) -> None:
    made = client.post("/v1/grids", json=grid()).json()
    assert client.post(f"/v1/grids/{made['id']}/cancel").status_code == 200
    fleet.release()
    ended = client.get(f"/v1/grids/{made['id']}?wait=30").json()
    assert {each["job"]["status"] for each in ended["cells"]} == {"cancelled"}
    assert client.delete(f"/v1/grids/{made['id']}").status_code == 204
    assert client.get("/v1/jobs").json()["data"] == []
    assert is_problem(client.get(f"/v1/grids/{made['id']}"), 404)


def test_job_that_is_no_grid_is_none(client: httpx2.Client, fleet: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json={"class_label": 1}).json()["id"]
    for call in (client.get, client.delete):
        assert is_problem(call(f"/v1/grids/{job_id}"), 404)
    assert is_problem(client.post(f"/v1/grids/{job_id}/cancel"), 404)
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200


def test_grid_of_another_caller_does_not_exist(client: httpx2.Client, worker: ToyWorker, make_key: MakeKey) -> None:
    ann, bob = make_key("ann"), make_key("bob")
    made = client.post("/v1/grids", json=grid(), headers=ann | {"Prefer": "wait=30"}).json()
    for call in (
        client.get(f"/v1/grids/{made['id']}", headers=bob),
        client.get(f"/v1/grids/{made['id']}/sheet", headers=bob),
        client.post(f"/v1/grids/{made['id']}/cancel", headers=bob),
        client.delete(f"/v1/grids/{made['id']}", headers=bob),
    ):
        assert is_problem(call, 404)
    assert client.get(made["sheet_url"], headers=ann).status_code == 200


@pytest.mark.process
@pytest.mark.slow
def test_each_cell_is_charged_as_a_job_and_the_limit_of_cells_is_a_setting(
    service_settings: Settings, fleet: ToyWorker, make_key: MakeKey
) -> None:
    limits = {"ADM_QUOTA_POSTS": "8", "ADM_MAX_GRID_CELLS": "6"}
    with (
        running_service(service_settings, **limits) as (address, _, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        ann = make_key("ann")
        assert client.post("/v1/grids", json=grid(), headers=ann).status_code == 202
        assert is_problem(client.post("/v1/grids", json=grid(), headers=ann), 429)
        seven = grid(x={"field": "seed", "values": list(range(7))}, y=None)
        assert is_problem(client.post("/v1/grids", json=seven, headers=ann), 422, "/x/values")
        assert len(client.get("/v1/jobs", headers=ann).json()["data"]) == 6
