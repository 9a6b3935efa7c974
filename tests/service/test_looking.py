"""Listing, reading, cancelling and deleting jobs; `test_jobs` is about posting them."""

import hashlib

import httpx2
import pytest
from redis import Redis

from jobs.redis import rq_keys
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, body
from tests.service.test_jobs import is_problem


def test_list_is_newest_first_and_pages_by_cursor(client: httpx2.Client, fleet: ToyWorker) -> None:
    ids = [client.post("/v1/jobs", json=body()).json()["id"] for _ in range(5)][::-1]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (ids[:2], True)
    client.delete(f"/v1/jobs/{ids[1]}")  # a cursor outlives its job
    second = client.get("/v1/jobs", params={"limit": 5, "after": first["next"]}).json()
    assert ([each["id"] for each in second["data"]], second["has_more"], second["next"]) == (ids[2:], False, None)


def test_list_filters_by_status(client: httpx2.Client, fleet: ToyWorker) -> None:
    cancelled = client.post("/v1/jobs", json=body()).json()["id"]
    client.post(f"/v1/jobs/{cancelled}/cancel")
    fleet.release()
    client.get(f"/v1/jobs/{cancelled}", params={"wait": 5})
    done = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    assert [each["id"] for each in client.get("/v1/jobs?status=cancelled").json()["data"]] == [cancelled]
    assert [each["id"] for each in client.get("/v1/jobs?status=completed").json()["data"]] == [done]


def test_empty_query_parameters_count_as_absent(client: httpx2.Client, fleet: ToyWorker) -> None:
    ids = [client.post("/v1/jobs", json=body()).json()["id"] for _ in range(2)][::-1]
    listed = client.get("/v1/jobs?status=&limit=&after=").json()["data"]
    assert [each["id"] for each in listed] == ids


@pytest.mark.parametrize("query", ["status=lost", "limit=0", "limit=101", "limit=x", "after=x"])
def test_wrong_query_parameter_is_named(client: httpx2.Client, query: str) -> None:
    assert is_problem(client.get(f"/v1/jobs?{query}"), 422, f"/{query.partition('=')[0]}")


def test_cancel_of_a_running_job_ends_it_and_a_second_after_its_end_is_409(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=0"}).json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] in ("cancelling", "cancelled")
    assert client.get(f"/v1/jobs/{job_id}?wait=30").json()["status"] == "cancelled"
    assert is_problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409)


def test_running_job_says_when_it_will_be_done_and_an_ended_one_does_not(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    job_id = client.post("/v1/jobs", json=body(upsample=False)).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        next(line for line in stream.iter_lines() if line == "event: started")
    progress = client.get(f"/v1/jobs/{job_id}").json()["progress"]
    # 25 steps of 40 ms, and no ratios of actual to estimated time yet
    assert (progress["eta_seconds"], progress["eta_error_seconds"]) == (1.0, 0.5)
    fleet.release()
    ended = client.get(f"/v1/jobs/{job_id}?wait=30").json()["progress"]
    assert (ended["fraction"], ended["eta_seconds"], ended["eta_error_seconds"]) == (1, None, None)


def test_deleted_job_is_gone_with_its_images(client: httpx2.Client, worker: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
    assert client.get(f"/v1/jobs/{job_id}/images/0").status_code == 200
    response = client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert is_problem(client.get(f"/v1/jobs/{job_id}"), 404)
    assert is_problem(client.get(f"/v1/jobs/{job_id}/images/0"), 404)
    assert is_problem(client.delete(f"/v1/jobs/{job_id}"), 404)
    assert list(worker.images.images(job_id)) == []


def test_image_has_its_hash_as_etag_and_is_not_sent_twice(client: httpx2.Client, worker: ToyWorker) -> None:
    job = client.post("/v1/jobs", json=body(n=2), headers={"Prefer": "wait=30"}).json()
    url = job["images"][1]["url"]
    response = client.get(url)
    assert (response.content, response.headers["content-type"]) == (png(1), "image/png")
    assert response.headers["etag"] == f'"{hashlib.sha256(png(1)).hexdigest()}"'
    assert response.headers["cache-control"].startswith("private, max-age=863")
    assert response.headers["cache-control"].endswith(", immutable")
    for etag in (response.headers["etag"], f'"x", W/{response.headers["etag"]}', "*"):
        again = client.get(url, headers={"If-None-Match": etag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    for other in ('"other"', "W/*", '"other", *', '"*"'):  # only * alone is any (RFC 9110, section 13.1.2)
        assert client.get(url, headers={"If-None-Match": other}).status_code == 200, other


def test_image_not_there_yet_is_409_and_no_such_is_404(client: httpx2.Client, fleet: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body(n=2)).json()["id"]
    assert is_problem(client.get(f"/v1/jobs/{job_id}/images/1"), 409)
    for index in ("2", "-1", "x", "99999999999999999999"):
        assert is_problem(client.get(f"/v1/jobs/{job_id}/images/{index}"), 404)
    fleet.release()


@pytest.mark.parametrize("job_id", ["0" * 32, "..%2f..", "a:b", "x" * 400])
def test_unknown_job_is_404_everywhere(client: httpx2.Client, job_id: str) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0")):
        assert is_problem(client.request(method, f"/v1/jobs/{job_id}{path}"), 404)


def test_unreadable_job_is_shown_without_its_request(client: httpx2.Client, worker: ToyWorker, redis: Redis) -> None:
    worker.hold()
    worker.stop()
    job_id = client.post("/v1/jobs", json=body()).json()["id"]
    redis.hset(rq_keys.job_key(job_id), "data", b"x")
    assert client.get(f"/v1/jobs/{job_id}").json()["request"] is None
    assert is_problem(client.get(f"/v1/jobs/{job_id}/images/0"), 404)
