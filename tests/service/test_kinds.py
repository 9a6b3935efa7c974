"""Kinds of jobs that start from uploaded pictures, over HTTP."""

import time
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.redis import keys
from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker
from tests.service.test_jobs import is_problem

NO_ETA = {"eta_seconds": None, "eta_error_seconds": None}  # of a job that has ended


@pytest.fixture
def files(client: httpx2.Client) -> list[str]:
    """Ids of two uploaded pictures."""
    return [client.post("/v1/files", content=png(grey)).json()["id"] for grey in (1, 2)]


def done(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=fields, headers={"Prefer": "wait=30"})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def test_images_say_which_file_they_were_made_from(client: httpx2.Client, worker: ToyWorker, files: list[str]) -> None:
    job = done(client, kind="variation", images=files, n=2)
    assert [each["source"] for each in job["images"]] == [files[0], files[0], files[1], files[1]]
    assert [each["class_label"] for each in job["images"]] == [None] * 4
    assert done(client, kind="generate", class_label=1)["images"][0]["source"] is None


def test_score_gives_results_and_no_image(client: httpx2.Client, worker: ToyWorker, files: list[str]) -> None:
    job = done(client, kind="score", images=files)
    assert (job["images"], job["results"]) == ([], {"scores": [[], []]})
    assert job["progress"] == {"stage": "base", "step": 1, "steps": 1, "fraction": 1} | NO_ETA
    assert done(client, class_label=1)["results"] is None


def test_upsampling_shows_progress_of_its_own_stage(client: httpx2.Client, worker: ToyWorker, files: list[str]) -> None:
    job = done(client, kind="upsample", images=files[:1], upsample={"steps": 7})
    assert job["progress"] == {"stage": "upsample", "step": 7, "steps": 7, "fraction": 1} | NO_ETA


def test_missing_image_of_a_job_in_progress_is_distinguished_from_one_that_never_will_be(
    client: httpx2.Client, fleet: ToyWorker, files: list[str]
) -> None:
    job = client.post("/v1/jobs", json={"kind": "reconstruct", "images": files}).json()
    assert is_problem(client.get(f"/v1/jobs/{job['id']}/images/1"), 409)
    assert is_problem(client.get(f"/v1/jobs/{job['id']}/images/2"), 404)


def test_file_that_is_not_there_is_named(client: httpx2.Client, fleet: ToyWorker, files: list[str]) -> None:
    def post() -> httpx2.Response:
        return client.post("/v1/jobs", json={"kind": "interpolate", "images": [files[0], "file-none"]})

    assert is_problem(post(), 422, "/images/1")
    client.delete(f"/v1/files/{files[0]}")
    assert is_problem(post(), 422, "/images/0", "/images/1")
    assert client.get("/v1/jobs").json()["data"] == []


def test_queued_job_keeps_its_files(
    client: httpx2.Client, fleet: ToyWorker, files: list[str], redis: Redis, service_settings: Settings
) -> None:
    redis.expire(keys.file(files[0]), 60)
    client.post("/v1/jobs", json={"kind": "score", "images": files[:1], "expires_in": 1000})
    kept_until = client.get(f"/v1/files/{files[0]}").json()["expires_at"]
    assert kept_until - time.time() == pytest.approx(1000 + service_settings.retention_seconds, abs=20)
    client.post("/v1/jobs", json={"kind": "score", "images": files[:1], "expires_in": 1})
    assert client.get(f"/v1/files/{files[0]}").json()["expires_at"] == kept_until


def test_same_key_and_another_file_is_a_mismatch(client: httpx2.Client, fleet: ToyWorker, files: list[str]) -> None:
    def post(file: str) -> httpx2.Response:
        body = {"kind": "score", "images": [file]}
        return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})

    first = post(files[0]).json()["id"]
    client.delete(f"/v1/files/{files[0]}")  # a repeated call must not need it any more
    again = post(files[0])
    assert (again.status_code, again.json()["id"]) == (200, first)
    assert is_problem(post(files[1]), 422)


def test_jobs_are_counted_by_kind(client: httpx2.Client, worker: ToyWorker, files: list[str]) -> None:
    done(client, kind="score", images=files)
    assert 'adm_jobs_submitted_total{kind="score",pipeline="demo",priority="normal"}' in client.get("/metrics").text


def test_field_of_another_kind_is_422(client: httpx2.Client, fleet: ToyWorker, files: list[str]) -> None:
    assert is_problem(client.post("/v1/jobs", json={"kind": "score", "images": files, "steps": 3}), 422, "/steps")
    assert is_problem(client.post("/v1/jobs", json={"kind": "upsample"}), 422, "/images")
