import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, body

JSON = {"Content-Type": "application/json"}


def is_problem(response: httpx2.Response, status: int, *pointers: str) -> bool:
    content = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == status == content["status"], content
    assert {"type", "title", "status", "detail", "instance"} <= set(content)
    assert [each["pointer"] for each in content.get("errors", [])] == list(pointers), content
    return True


def test_job_is_accepted_resolved_and_completed(client: httpx2.Client, worker: ToyWorker) -> None:
    response = client.post("/v1/jobs", json=body())
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(response.headers["retry-after"]) >= 1
    assert job["status"] == "queued"
    assert job["queue"]["position"] == 0
    assert job["queue"]["workers"] == 1
    unknown = {"eta_seconds": None, "eta_error_seconds": None}  # `queue` has the estimates of what waits
    assert job["progress"] == {"stage": "base", "step": 0, "steps": 25, "fraction": 0} | unknown
    assert (job["usage"], job["attempt"]) == ({"steps": 0, "device_seconds": 0}, 1)
    assert job["request"] == {
        "kind": "generate",
        "model": "demo",
        "images": [],
        "seeds": None,
        "strength": None,
        "class_label": 4,
        "class_weights": None,
        "guidance_scale": 2.5,
        "guidance_interval": [0, 1000],
        "guidance_schedule": "constant",
        "steps": 25,
        "sampler": "ddim",
        "eta": 0.0,
        "eps_scale": 1.0,
        "n": 1,
        "first_index": 0,
        "seed": job["request"]["seed"],
        "upsample": {
            "steps": 10,
            "sampler": "ddim",
            "eta": 0.0,
            "strength": 1.0,
            "time_grid": "official",
            "thresholding": "clip",
        },
        "time_grid": "official",
        "thresholding": "clip",
        "previews": False,
        "priority": "normal",
        "expires_in": 86400,
        "user": None,
        "metadata": None,
        "webhook_url": None,
    }
    assert 0 <= job["request"]["seed"] < 2**53
    done = client.get(f"/v1/jobs/{job['id']}", params={"wait": 10}).json()
    assert (done["status"], done["progress"]["fraction"], done["queue"], done["attempt"]) == ("completed", 1, None, 1)
    (image,) = done["images"]
    assert image == {
        "index": 0,
        "url": f"/v1/jobs/{job['id']}/images/0",
        "sha256": hashlib.sha256(png(0)).hexdigest(),
        "width": 2,
        "height": 2,
        "class_label": 4,
        "class_name": "torus",
        "seed": job["request"]["seed"],
        "source": None,
    }


def test_prefer_wait_answers_200_with_the_ended_job(client: httpx2.Client, worker: ToyWorker) -> None:
    response = client.post("/v1/jobs", json=body(), headers={"Prefer": "respond-async, wait=100"})
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert response.headers["preference-applied"] == "wait=60"


def test_prefer_wait_that_runs_out_answers_202(client: httpx2.Client, fleet: ToyWorker) -> None:
    began = time.monotonic()
    response = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=1"})
    assert response.status_code == 202
    assert response.json()["status"] in ("queued", "in_progress")
    assert 0.9 < time.monotonic() - began < 30, "the longest wait is 60 seconds"
    assert "preference-applied" not in response.headers
    fleet.release()


@pytest.mark.parametrize(
    ("lines", "applied"),
    [
        (["wait=5"], "wait=5"),
        (["respond-async", "WAIT = 5"], "wait=5"),
        (['wait="5"'], "wait=5"),
        (["wait=5; foo=bar"], "wait=5"),
        (['foo="a, wait=4", wait=5, wait=6'], "wait=5"),
        (["wait=99999999999"], "wait=60"),
        (["foo; wait=5"], None),
        (['foo="; wait=5"'], None),
        (["wait=soon", "await=5"], None),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(
    client: httpx2.Client, worker: ToyWorker, lines: list[str], applied: str | None
) -> None:
    response = client.post("/v1/jobs", json=body(), headers=[("Prefer", each) for each in lines])
    assert response.headers.get("preference-applied") == applied


def test_job_deleted_while_its_post_waits_is_answered_as_it_was_submitted(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/jobs", json=body(), headers={"Prefer": "wait=10"})
        while not (jobs := client.get("/v1/jobs").json()["data"]):
            pass
        client.delete(f"/v1/jobs/{jobs[0]['id']}")
        response = waiting.result()
    assert (response.status_code, response.json()["id"]) == (202, jobs[0]["id"])
    assert response.headers["location"] == f"/v1/jobs/{jobs[0]['id']}"


@pytest.mark.parametrize(
    ("content", "pointer"),
    [
        ({"class_label": "donut", "guidance_scale": 1}, "/class_label"),
        ({"class_label": 10}, "/class_label"),
        ({"class_label": True}, "/class_label"),
        ({}, "/class_label"),
        ({"class_label": None, "guidance_scale": 2}, "/guidance_scale"),
        (body(model="imagenet"), "/model"),
        (body(guidance_scale=50.5), "/guidance_scale"),
        (body(guidance_scale=-1), "/guidance_scale"),
        (body(guidance_scale="2"), "/guidance_scale"),
        (body(guidance_scale=True), "/guidance_scale"),
        (body(steps=0), "/steps"),
        (body(steps=1001), "/steps"),
        (body(steps=2.5), "/steps"),
        (body(n=65), "/n"),
        (body(seed=2**63), "/seed"),
        (body(sampler="euler"), "/sampler"),
        (body(sampler="ddpm", eta=0.5), "/eta"),
        (body(guidance_interval=[500, 100]), "/guidance_interval"),
        (body(upsample={"steps": 0}), "/upsample/steps"),
        (body(upsample={"sampler": "ddpm", "eta": 1}), "/upsample/eta"),
        (body(metadata={"a": 1}), "/metadata/a"),
        (body(prompt="a cat"), "/prompt"),
        (body(kind="draw"), "/kind"),
        (body(webhook_url="https://example.org"), "/webhook_url"),
        ([], ""),
    ],
)
def test_wrong_field_is_named_and_nothing_is_queued(
    client: httpx2.Client, fleet: ToyWorker, content: Any, pointer: str
) -> None:
    assert is_problem(client.post("/v1/jobs", json=content), 422, pointer)
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (b'{"class_label": 1, "guidance_scale": NaN}', "/guidance_scale"),
        (b'{"class_label": 1, "guidance_scale": Infinity}', "/guidance_scale"),
        (b'{"class_label": 1, "guidance_scale": 1e999}', "/guidance_scale"),
        (b'{"class_label": 1', ""),
        (b"", ""),
        (b"\xff\xfe", ""),
        (b"[" * 60_000, ""),
    ],
)
def test_body_that_is_no_request_is_422(client: httpx2.Client, fleet: ToyWorker, text: bytes, pointer: str) -> None:
    assert is_problem(client.post("/v1/jobs", content=text, headers=JSON), 422, pointer)


def test_body_of_more_than_65536_bytes_is_413_however_it_comes(client: httpx2.Client, fleet: ToyWorker) -> None:
    padded = json.dumps(body()).encode()
    fits = padded + b" " * (65_536 - len(padded))
    assert client.post("/v1/jobs", content=fits, headers=JSON).status_code == 202
    assert is_problem(client.post("/v1/jobs", content=fits + b" ", headers=JSON), 413)
    assert is_problem(client.post("/v1/jobs", content=iter([fits, b" "]), headers=JSON), 413)


def test_known_pipeline_without_worker_is_accepted_and_says_so(client: httpx2.Client, worker: ToyWorker) -> None:
    worker.stop()
    response = client.post("/v1/jobs", json=body(model="demo-uncond"))
    assert response.status_code == 202
    queue = client.get(response.headers["Location"]).json()["queue"]
    assert (queue["workers"], queue["eta_seconds"], queue["position"]) == (0, None, 0)


def test_null_class_without_scale_means_no_guidance(client: httpx2.Client, fleet: ToyWorker) -> None:
    request = client.post("/v1/jobs", json={"class_label": None}).json()["request"]
    assert (request["class_label"], request["guidance_scale"]) == (None, 0)


def test_same_key_and_body_give_the_same_job_however_many_race(client: httpx2.Client, worker: ToyWorker) -> None:
    def post(_: int) -> httpx2.Response:
        return client.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k1"})

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(post, range(16)))
    assert len({each.json()["id"] for each in responses}) == 1
    assert sorted(each.status_code for each in responses) == [200] * 15 + [202]
    assert sum(each.headers.get("idempotency-replayed") == "true" for each in responses) == 15
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    job_id = responses[0].json()["id"]
    client.get(f"/v1/jobs/{job_id}?wait=30")
    late = client.post("/v1/jobs", json=dict(reversed(body().items())), headers={"Idempotency-Key": "k1"})
    assert (late.status_code, late.json()["id"], late.json()["status"]) == (200, job_id, "completed")


def test_same_key_with_another_body_is_422(client: httpx2.Client, fleet: ToyWorker) -> None:
    client.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k2"})
    assert is_problem(client.post("/v1/jobs", json=body(steps=26), headers={"Idempotency-Key": "k2"}), 422)
    assert is_problem(
        client.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k" * 256}), 422, "/Idempotency-Key"
    )


def test_full_queue_is_503_with_the_time_it_takes_to_drain(client: httpx2.Client, fleet: ToyWorker) -> None:
    for _ in range(30):  # 64 images of 1000 steps, at 5 ms a row step: 320 s a job
        response = client.post("/v1/jobs", json=body(n=64, steps=1000))
        if response.status_code != 202:
            break
    assert is_problem(response, 503)
    assert 0 < int(response.headers["retry-after"]) < 400


def test_estimate_grows_with_what_is_queued_before(client: httpx2.Client, fleet: ToyWorker) -> None:
    jobs = [client.post("/v1/jobs", json=body(n=64, steps=100)).json() for _ in range(4)]
    estimates = [each["queue"]["eta_seconds"] for each in jobs]
    assert estimates == sorted(estimates)
    assert estimates[-1] > estimates[0] > 0


def test_jobs_of_another_pipeline_on_the_same_worker_are_waited_for(client: httpx2.Client, fleet: ToyWorker) -> None:
    fills_it = client.post("/v1/jobs", json=body(n=64)).headers["Location"]
    while client.get(fills_it).json()["status"] != "in_progress":
        time.sleep(0.01)
    mine = client.post("/v1/jobs", json=body(n=64)).headers["Location"]
    alone = client.get(mine).json()["queue"]
    for priority in ("high", "high", "normal", "low"):
        client.post("/v1/jobs", json=body(model="demo-uncond", n=64, steps=10, priority=priority))
    beside = client.get(mine).json()["queue"]
    assert (alone["position"], beside["position"]) == (0, 3)
    assert beside["eta_seconds"] > alone["eta_seconds"]


def test_queue_is_full_over_all_pipelines_of_its_workers(client: httpx2.Client, fleet: ToyWorker) -> None:
    for index in range(30):
        response = client.post("/v1/jobs", json=body(model=("demo", "demo-uncond")[index % 2], n=64, steps=1000))
        if response.status_code != 202:
            break
    for name, other in (("demo", "demo-uncond"), ("demo-uncond", "demo")):
        response = client.post("/v1/jobs", json=body(model=name))
        assert is_problem(response, 503)
        assert f"queued for the workers of '{name}', which serve '{other}' too" in response.json()["detail"]
        assert 0 < int(response.headers["retry-after"]) < 400
