"""A rolling upgrade with the former version's own code, which `make test-upgrade` checks out as FORMER.

Each service works with each worker, and the images are the same bytes if the numerics are the same.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.jobs.samples import png
from tests.upgrade.versions import PRESENT, Made, Programs, Version, ended, programs

VERSIONS = (Version("former", Path(os.environ["FORMER"]).absolute()), Version("present", PRESENT))
JOBS: dict[str, dict[str, Any]] = {
    "guided": {"class_label": "torus", "guidance_scale": 2, "steps": 9, "n": 2, "seed": 1},
    "ddpm": {"class_label": "cube", "guidance_scale": 1, "steps": 12, "sampler": "ddpm", "seed": 2},
    "heun": {"class_label": 3, "steps": 6, "sampler": "heun", "upsample": False, "seed": 3},
    "ddim": {"class_label": 5, "steps": 8, "sampler": "ddim", "eta": 0.5, "thresholding": "dynamic", "seed": 4},
    "weights": {"class_weights": {"star": 1, "cube": 2}, "guidance_scale": 4, "steps": 7, "seed": 5},
    "uncond": {"model": "demo-uncond", "class_label": None, "guidance_scale": 0, "steps": 5, "seed": 6},
    "morph": {"kind": "interpolate", "seeds": [5, 6], "class_label": "star", "n": 3, "steps": 5, "seed": 7},
}
LONG = {"class_label": "torus", "guidance_scale": 2, "steps": 200, "sampler": "ddpm", "upsample": False}
LONGS = 8


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with programs(tmp_path_factory.mktemp("u")) as shared:
        yield shared


def post(client: httpx2.Client, body: dict[str, Any]) -> str:
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def made_of(client: httpx2.Client) -> dict[str, Made]:
    """Every kind of job, each with its result."""
    file_id = client.post("/v1/files", content=png(90, 40)).raise_for_status().json()["id"]
    pictured: dict[str, dict[str, Any]] = {
        "variation": {"kind": "variation", "images": [file_id], "strength": 0.4, "n": 2, "steps": 8, "seed": 8},
        "reconstruct": {"kind": "reconstruct", "images": [file_id], "steps": 6},
        "upsample": {"kind": "upsample", "images": [file_id], "seed": 9},
        "score": {"kind": "score", "images": [file_id]},
    }
    ids = {name: post(client, body) for name, body in (JOBS | pictured).items()}
    return {name: ended(client, job_id) for name, job_id in ids.items()}


def test_each_service_gets_the_same_images_from_each_worker(shared: Programs) -> None:
    clients = {each.name: shared.service(each) for each in VERSIONS}
    found: dict[tuple[str, str], dict[str, Made]] = {}
    for worker in VERSIONS:
        name = shared.worker(worker)
        for service, client in clients.items():
            found[service, worker.name] = made_of(client)
        assert shared.stop(name) == 0
    assert {made.status for each in found.values() for made in each.values()} == {"completed"}
    for worker in VERSIONS:
        assert found["former", worker.name] == found["present", worker.name], "the service has no part in an image"
    numerics = {name: {made.numerics for made in found["present", name].values()} for name in ("former", "present")}
    print(f"numerics: {numerics}")
    if numerics["former"] == numerics["present"]:
        assert found["present", "former"] == found["present", "present"]


@pytest.mark.parametrize("order", [VERSIONS, VERSIONS[::-1]], ids=["upgrade", "rollback"])
def test_all_jobs_end_while_services_and_workers_are_replaced_one_by_one(
    shared: Programs, order: tuple[Version, Version]
) -> None:
    """Jobs in flight go on from their checkpoints with the other version; those posted before are seen by both."""
    first, second = order
    old = shared.service(first)
    old_worker = shared.worker(first)
    alone = ended(old, post(old, LONG | {"seed": 0}))
    ids = [post(old, LONG | {"seed": seed}) for seed in range(LONGS)]
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(
        old.get(f"/v1/jobs/{each}").json()["progress"]["step"] > 60 for each in ids
    ):
        time.sleep(0.05)
    new_worker = shared.worker(second)
    assert shared.stop(old_worker) == 0
    new = shared.service(second)
    ids += [post(new, LONG | {"seed": seed}) for seed in range(LONGS, LONGS + 4)]
    assert old.get(f"/v1/jobs/{ids[-1]}").json()["request"]["seed"] == LONGS + 3, "the former service shows it too"
    ids.append(post(old, LONG | {"seed": LONGS + 4}))
    assert shared.stop(f"service-{first.name}", signal.SIGTERM) in (0, -signal.SIGTERM)
    made = [ended(new, each) for each in ids]
    assert {each.status for each in made} == {"completed"}
    if {each.numerics for each in made} == {alone.numerics}:
        assert made[0].sha256 == alone.sha256, "the job that was handed over has the bytes of one that was not"
    assert new_worker in shared.running


def test_grid_of_the_present_service_is_made_by_a_former_worker_and_harms_no_former_service(shared: Programs) -> None:
    former, present = VERSIONS
    old, new = shared.service(former), shared.service(present)
    shared.worker(former)
    body = {
        "class_label": 1,
        "x": {"field": "guidance_scale", "values": [0, 2]},
        "y": {"field": "steps", "values": [3, 5]},
    }
    grid = new.post("/v1/grids", json=body, headers={"Prefer": "wait=60"}).raise_for_status().json()
    assert (grid["completed"], grid["ended"]) == (4, 4)
    assert new.get(grid["sheet_url"]).status_code == 200
    for cell in grid["cells"]:
        seen = old.get(f"/v1/jobs/{cell['job']['id']}").raise_for_status().json()
        assert (seen["status"], seen["images"]) == ("completed", cell["job"]["images"])
    assert len(old.get("/v1/jobs").json()["data"]) == 4
