"""Foreign and corrupt entries in Redis make no answer of the service a failure, and hide no job but a corrupt one."""

from collections.abc import Callable

import httpx2
import pytest
from redis import Redis

from jobs.redis import keys, rq_keys
from tests.corruption import DAMAGE, FIELDS, FOREIGN, replace, spoil
from tests.service.conftest import ToyWorker, body

PATHS = ("/v1/jobs", "/v1/workers", "/v1/models", "/metrics", "/healthz", "/readyz")


def post(client: httpx2.Client) -> str:
    return str(client.post("/v1/jobs", json=body()).raise_for_status().json()["id"])


def assert_answers(client: httpx2.Client, *paths: str) -> None:
    for path in (*PATHS, *(f"/v1/jobs?status={each}" for each in ("queued", "in_progress", "failed")), *paths):
        response = client.get(path)
        assert response.status_code == 200, (path, response.text)


@pytest.mark.parametrize("litter", FOREIGN)
def test_foreign_entries_make_no_answer_a_failure(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis, litter: Callable[[Redis], None]
) -> None:
    litter(redis)
    job_id = post(client)
    assert_answers(client, f"/v1/jobs/{job_id}")
    fleet.release()
    assert client.get(f"/v1/jobs/{job_id}?wait=30").json()["status"] == "completed"
    assert_answers(client)


@pytest.mark.parametrize("field", FIELDS)
def test_damaged_job_is_shown_as_failed_and_others_as_they_are(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis, field: str
) -> None:
    bad, good = post(client), post(client)
    spoil(redis, bad, field, DAMAGE[field])
    listed = {each["id"]: each["status"] for each in client.get("/v1/jobs").json()["data"]}
    assert listed[bad] == "failed"
    assert listed[good] in ("queued", "in_progress")
    assert field in client.get(f"/v1/jobs/{bad}").json()["error"]["detail"]
    assert_answers(client, f"/v1/jobs/{bad}/events")


@pytest.mark.parametrize("key", [rq_keys.job_key, keys.events, keys.progress])
def test_keys_of_the_wrong_type_make_no_answer_a_failure(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis, key: Callable[[str], str]
) -> None:
    bad, good = post(client), post(client)
    replace(redis, key(bad))
    assert_answers(client, f"/v1/jobs/{bad}", f"/v1/jobs/{bad}?wait=1")
    fleet.release()
    assert client.get(f"/v1/jobs/{good}?wait=30").json()["status"] == "completed"


def test_foreign_entries_among_the_events_are_left_out_of_the_stream(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis
) -> None:
    job_id = post(client)
    redis.xadd(keys.events(job_id), {"event": "garbage"})
    redis.xadd(keys.events(job_id), {b"\xff": b"\xff"})
    fleet.release()
    text = client.get(f"/v1/jobs/{job_id}/events").text
    assert "event: completed" in text
    assert "garbage" not in text


def test_corrupt_record_of_a_file_counts_as_none(client: httpx2.Client, fleet: ToyWorker, redis: Redis) -> None:
    file_id = "file-" + "0" * 32
    redis.set(keys.file(file_id), "garbage")
    assert client.get(f"/v1/files/{file_id}").status_code == 404
    response = client.post("/v1/jobs", json={"kind": "upsample", "images": [file_id]})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/images/0"
