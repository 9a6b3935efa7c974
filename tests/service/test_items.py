"""Several jobs in one call: each is a job like any other, all are queued or none, and none is cheaper for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.contract.caller import ANONYMOUS
from jobs.contract.job import JobStatus
from jobs.queue.submitting import job_id_of
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.service.test_jobs import is_problem
from tests.waiting import eventually

COMMON = {"guidance_scale": 2.5, "steps": 25}


def items(*each: dict[str, Any], **common: Any) -> dict[str, Any]:
    return COMMON | common | {"items": list(each)}


def ids_of(answer: httpx2.Response) -> list[str]:
    assert answer.status_code in (200, 202), answer.text
    assert answer.json()["object"] == "list"
    return [each["id"] for each in answer.json()["data"]]


def num_jobs(client: httpx2.Client) -> int:
    return len(client.get("/v1/jobs", params={"limit": 100}).json()["data"])


def test_each_item_is_a_job_with_the_common_fields_it_does_not_have_itself(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    answer = client.post(
        "/v1/jobs",
        json=items(
            {"class_label": "torus"},
            {"class_label": "cone", "seed": 7, "steps": 9},
            {},
            class_label=0,
            metadata={"a": "b"},
        ),
    )
    assert answer.status_code == 202
    requests = [each["request"] for each in answer.json()["data"]]
    assert [(each["class_label"], each["steps"]) for each in requests] == [(4, 25), (3, 9), (0, 25)]
    assert requests[1]["seed"] == 7
    assert requests[0]["seed"] != requests[2]["seed"]
    assert {str(each["metadata"]) for each in requests} == {"{'a': 'b'}"}
    for job in answer.json()["data"]:
        assert client.get(f"/v1/jobs/{job['id']}").json()["request"] == job["request"]


def test_answer_waits_for_all_items(client: httpx2.Client, worker: ToyWorker) -> None:
    answer = client.post("/v1/jobs", json=items({"class_label": 1}, {"class_label": 2}), headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=20")
    assert [each["status"] for each in answer.json()["data"]] == ["completed"] * 2


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        (items({"class_label": 1}, {"class_label": "no such"}), "/items/1/class_label"),
        (items({"class_label": 1}, {"class_label": 1, "steps": 0}), "/items/1/steps"),
        (items({"class_label": 1}, {"class_label": True}), "/items/1/class_label"),
        (items({"class_label": 1, "upsample": {"steps": 0}}), "/items/0/upsample/steps"),
        (items({"class_label": 1}, steps=0), "/steps"),
        (items({"items": [{}]}), "/items/0/items"),
        (items(), "/items"),
        (items(*[{"class_label": 1}] * 65), "/items"),
        ({"items": None}, "/items"),
        ({"items": [{"kind": "upsample", "images": ["file-none"]}]}, "/items/0/images/0"),
    ],
)
def test_wrong_item_is_named_and_nothing_is_queued(
    client: httpx2.Client, fleet: ToyWorker, given: dict[str, Any], pointer: str
) -> None:
    assert is_problem(client.post("/v1/jobs", json=given), 422, pointer)
    assert num_jobs(client) == 0


def test_key_stands_for_all_jobs_of_the_call(client: httpx2.Client, fleet: ToyWorker) -> None:
    key, given = {"Idempotency-Key": "k"}, items({"class_label": 1}, {"class_label": 2}, {"class_label": 3})
    first = client.post("/v1/jobs", json=given, headers=key)
    again = client.post("/v1/jobs", json=given, headers=key)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert ids_of(again) == ids_of(first)
    assert "Idempotency-Replayed" not in first.headers
    for other in (items({"class_label": 1}), items(*given["items"][::-1]), body(class_label=1)):
        assert is_problem(client.post("/v1/jobs", json=other, headers=key), 422)
    assert num_jobs(client) == 3
    client.delete(f"/v1/jobs/{ids_of(first)[1]}")
    assert ids_of(client.post("/v1/jobs", json=given, headers=key)) == [ids_of(first)[0], ids_of(first)[2]]
    client.delete(f"/v1/jobs/{ids_of(first)[0]}")
    anew = client.post("/v1/jobs", json=given, headers=key)
    assert anew.status_code == 202
    assert not set(ids_of(anew)[1:]) & set(ids_of(first))


def test_key_of_one_job_is_not_taken_by_a_call_with_items(client: httpx2.Client, fleet: ToyWorker) -> None:
    assert client.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k"}).status_code == 202
    refused = client.post("/v1/jobs", json={"items": [body()]}, headers={"Idempotency-Key": "k"})
    assert is_problem(refused, 422)
    assert num_jobs(client) == 1


def test_calls_that_race_under_one_key_queue_one_set_of_jobs(client: httpx2.Client, fleet: ToyWorker) -> None:
    given, begin = items({"class_label": 1}, {"class_label": 2}), threading.Barrier(8)

    def post(_: int) -> httpx2.Response:
        begin.wait()
        return client.post("/v1/jobs", json=given, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert len({tuple(ids_of(each)) for each in answers}) == 1
    assert [each.status_code for each in answers].count(202) == 1
    assert num_jobs(client) == 2


def test_key_whose_place_is_taken_by_what_is_no_job_is_refused_at_once(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis
) -> None:
    redis.hset(rq_keys.job_key(job_id_of(ANONYMOUS, "taken")), "last_heartbeat", "x")
    answer = client.post("/v1/jobs", json=items({"class_label": 1}), headers={"Idempotency-Key": "taken"})
    is_problem(answer, 503)


@pytest.mark.process
@pytest.mark.slow
def test_calls_that_come_together_queue_no_more_than_may_be_queued(
    service_settings: Settings, fleet: ToyWorker, redis: Redis
) -> None:
    with running_service(service_settings, ADM_MAX_QUEUED_JOBS="100") as (address, _, _):

        def post(number: int) -> int:
            call = items(*[{"class_label": 1}] * number)
            return httpx2.post(f"{address}/v1/jobs", json=call, timeout=60).status_code

        assert post(64) == 202
        eventually(lambda: redis.zcard(keys.index(JobStatus.QUEUED)) == 0, "the worker has all that it has room for")
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(post, [60] * 8)) == [202] + [503] * 7


def test_same_key_of_two_callers_is_two_sets(client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey) -> None:
    ann, bob = make_key("ann"), make_key("bob")
    given, key = items({"class_label": 1}, {"class_label": 2}), {"Idempotency-Key": "k"}
    first = ids_of(client.post("/v1/jobs", json=given, headers=ann | key))
    other = client.post("/v1/jobs", json=given, headers=bob | key)
    assert other.status_code == 202
    assert not set(ids_of(other)) & set(first)
    for job_id in first:
        assert is_problem(client.get(f"/v1/jobs/{job_id}", headers=bob), 404)
