"""Jobs, files, images, streams, lists and idempotency keys are their caller's: to another they do not exist."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import httpx2
import pytest
from redis import Redis

from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.contract.job import JobStatus
from jobs.queue.cleaner import Cleaner
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys
from jobs.redis.rq_keys import job_key
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body, wait_followed
from tests.service.test_grids import grid
from tests.service.test_jobs import is_problem
from tests.waiting import eventually

UNKNOWN = {"job_id": "0" * 32, "file_id": "file-" + "0" * 32}
Headers = dict[str, str]


class Callers(NamedTuple):
    ann: Headers
    bob: Headers
    operator: Headers


@pytest.fixture
def callers(fleet: ToyWorker, make_key: MakeKey) -> Callers:
    """Two users and an operator of a service whose worker claims jobs but finishes none."""
    return Callers(make_key("ann"), make_key("bob"), make_key("root", Role.OPERATOR))


@pytest.fixture
def done(client: httpx2.Client, fleet: ToyWorker, callers: Callers) -> dict[str, Any]:
    """A completed job of ann's."""
    fleet.release()
    job: dict[str, Any] = client.post(
        "/v1/jobs", json=body(), headers=callers.ann | {"Prefer": "wait=30", "Idempotency-Key": "one"}
    ).json()
    assert job["status"] == "completed"
    fleet.hold()
    return job


def post(client: httpx2.Client, headers: Headers, **fields: Any) -> str:
    answer = client.post("/v1/jobs", json=body(**fields), headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def listed(client: httpx2.Client, headers: Headers, **params: str) -> list[str]:
    page = client.get("/v1/jobs", headers=headers, params=params).raise_for_status().json()
    return [each["id"] for each in page["data"]]


def without_names(answer: httpx2.Response, path: str) -> tuple[int, str, set[str]]:
    """An answer without the parts that repeat the request's path."""
    names = path.split("/")[3]
    return answer.status_code, answer.text.replace(names, "ID"), set(answer.headers)


def test_every_call_about_anothers_job_or_file_is_answered_as_if_it_did_not_exist(
    client: httpx2.Client, callers: Callers, done: dict[str, Any]
) -> None:
    file_id = client.post("/v1/files", content=png(), headers=callers.ann).json()["id"]
    owned = {"job_id": done["id"], "file_id": file_id}
    paths = client.get("/openapi.json").json()["paths"]
    called = 0
    for template, operations in paths.items():
        if not any(f"{{{name}}}" in template for name in owned):
            continue
        for method in operations:
            theirs, unknown = (template.format(**ids, index=0) for ids in (owned, UNKNOWN))
            for extra in ({}, {"Last-Event-ID": "0-1"}, {"If-None-Match": "*"}):
                sent = callers.bob | extra
                answers = [(client.request(method, path, headers=sent), path) for path in (theirs, unknown)]
                assert is_problem(answers[0][0], 404), (method, template)
                assert without_names(*answers[0]) == without_names(*answers[1]), (method, template)
            called += 1
    assert called >= 8
    assert client.get(f"/v1/jobs/{done['id']}", headers=callers.ann).json() == done
    assert client.get(done["images"][0]["url"], headers=callers.ann).status_code == 200
    assert client.get(f"/v1/files/{file_id}/content", headers=callers.ann).status_code == 200


def test_waiting_queued_and_running_jobs_are_their_callers_too(client: httpx2.Client, callers: Callers) -> None:
    job_id = post(client, callers.ann)
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}?wait=5", f"/v1/jobs/{job_id}/images/0"):
        assert is_problem(client.get(path, headers=callers.bob), 404)
    assert is_problem(client.post(f"/v1/jobs/{job_id}/cancel", headers=callers.bob), 404)
    assert client.get(f"/v1/jobs/{job_id}", headers=callers.ann).json()["status"] in ("queued", "in_progress")


def test_lists_and_their_pages_contain_the_callers_own_jobs_alone(client: httpx2.Client, callers: Callers) -> None:
    anns, bobs = [], []
    for _ in range(3):
        anns.append(post(client, callers.ann))
        bobs.append(post(client, callers.bob))
    assert listed(client, callers.ann) == anns[::-1]
    both = [each for pair in zip(bobs[::-1], anns[::-1], strict=True) for each in pair]
    assert listed(client, callers.operator) == both
    first = client.get("/v1/jobs", headers=callers.bob, params={"limit": "2"}).json()
    assert [each["id"] for each in first["data"]] == bobs[:0:-1]
    assert first["has_more"]
    assert listed(client, callers.bob, after=first["next"]) == bobs[:1]
    assert listed(client, callers.ann, after=first["next"]) == anns[1::-1], "a cursor is a place, and opens nothing"
    client.post(f"/v1/jobs/{anns[0]}/cancel", headers=callers.ann)
    client.delete(f"/v1/jobs/{anns[1]}", headers=callers.ann)
    assert anns[1] not in listed(client, callers.ann)
    assert listed(client, callers.ann, status="queued") + listed(client, callers.ann, status="in_progress") == [anns[2]]
    for status in JobStatus:
        assert not set(listed(client, callers.bob, status=status)) & set(anns)


def test_same_idempotency_key_of_two_callers_is_two_jobs(
    client: httpx2.Client, callers: Callers, done: dict[str, Any]
) -> None:
    again = client.post("/v1/jobs", json=body(), headers=callers.ann | {"Idempotency-Key": "one"})
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (done["id"], "true")
    other = client.post("/v1/jobs", json=body(), headers=callers.bob | {"Idempotency-Key": "one"})
    assert other.status_code == 202
    assert other.json()["id"] != done["id"]
    changed = client.post("/v1/jobs", json=body(steps=9), headers=callers.operator | {"Idempotency-Key": "one"})
    assert changed.status_code == 202, "an operator's keys are its own too"


def test_same_bytes_of_two_callers_are_two_files(client: httpx2.Client, callers: Callers) -> None:
    ids = [client.post("/v1/files", content=png(), headers=each).json()["id"] for each in callers]
    assert len(set(ids)) == 3
    assert client.delete(f"/v1/files/{ids[0]}", headers=callers.ann).status_code == 204
    assert client.get(f"/v1/files/{ids[1]}/content", headers=callers.bob).status_code == 200
    assert client.post("/v1/files", content=png(), headers=callers.bob).json()["id"] == ids[1]


def test_job_that_names_anothers_file_is_refused_as_for_one_that_is_not_there(
    client: httpx2.Client, callers: Callers, redis: Redis
) -> None:
    file_id = client.post("/v1/files", content=png(), headers=callers.ann).json()["id"]
    redis.expire(keys.file(file_id), 100)
    answers = [
        client.post("/v1/jobs", json=body(kind="variation", images=[each], strength=0.5), headers=callers.bob)
        for each in (file_id, UNKNOWN["file_id"])
    ]
    assert all(is_problem(each, 422, "/images/0") for each in answers)
    assert answers[0].json() == answers[1].json()
    assert int(redis.ttl(keys.file(file_id))) <= 100, "it is not kept for longer for a stranger's sake"
    own = body(kind="variation", images=[file_id], strength=0.5)
    assert client.post("/v1/jobs", json=own, headers=callers.ann).status_code == 202


def test_what_was_made_before_the_first_key_is_the_operators(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k"}).json()["id"]
    file_id = client.post("/v1/files", content=png()).json()["id"]
    user, operator = make_key("ann"), make_key("root", Role.OPERATOR)
    for path in (f"/v1/jobs/{job_id}", f"/v1/files/{file_id}"):
        assert is_problem(client.get(path, headers=user), 404)
        assert client.get(path, headers=operator).status_code == 200
    assert listed(client, user) == []
    assert listed(client, operator) == [job_id]
    assert client.post("/v1/jobs", json=body(), headers=user | {"Idempotency-Key": "k"}).json()["id"] != job_id


def test_operator_cancels_and_deletes_anybodys(client: httpx2.Client, callers: Callers, done: dict[str, Any]) -> None:
    job_id = post(client, callers.bob)
    assert client.post(f"/v1/jobs/{job_id}/cancel", headers=callers.operator).status_code == 200
    assert client.delete(f"/v1/jobs/{done['id']}", headers=callers.operator).status_code == 204
    assert listed(client, callers.ann) == []


@pytest.fixture
def stream(client: httpx2.Client, callers: Callers) -> Iterator[Iterator[str]]:
    """Lines of a stream of ann's, after its start."""
    job_id = post(client, callers.ann)
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=callers.ann) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: queued":
            pass
        yield lines


def test_stream_ends_when_its_callers_key_is_rotated(redis: Redis, fleet: ToyWorker, stream: Iterator[str]) -> None:
    KeyStore(redis).rotate("ann")
    fleet.release()
    assert "event: completed" not in list(stream)


def test_long_poll_of_a_revoked_key_reveals_nothing(
    client: httpx2.Client, redis: Redis, fleet: ToyWorker, callers: Callers
) -> None:
    job_id = post(client, callers.ann)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, f"/v1/jobs/{job_id}?wait=20", headers=callers.ann)
        wait_followed(redis, job_id)
        KeyStore(redis).revoke("ann")
        fleet.release()
        assert is_problem(waiting.result(), 404)


HELD: dict[str, tuple[str, str, Any]] = {
    "a grid": ("GET", "/v1/grids/{grid_id}?wait=20", None),
    "a grid that is posted": ("POST", "/v1/grids", grid()),
    "images of OpenAI's API": ("POST", "/v1/images/generations", {"prompt": "torus"}),
}


@pytest.mark.parametrize("held", HELD)
def test_other_held_calls_of_a_revoked_key_reveal_nothing_either(
    client: httpx2.Client, redis: Redis, fleet: ToyWorker, callers: Callers, held: str
) -> None:
    method, path, sent = HELD[held]
    if "{" in path:
        posted = client.post("/v1/grids", json=grid(), headers=callers.ann)
        path = path.format(grid_id=posted.json()["id"])
    with ThreadPoolExecutor(1) as pool:
        headers = callers.ann | {"Prefer": "wait=20"}
        waiting = pool.submit(client.request, method, path, json=sent, headers=headers)
        eventually(lambda: listed(client, callers.operator) != [], "the jobs are queued")
        wait_followed(redis, listed(client, callers.operator)[-1])
        KeyStore(redis).revoke("ann")
        fleet.release()
        assert waiting.result().status_code == 404


def test_record_carries_the_callers_id_and_no_key(client: httpx2.Client, redis: Redis, callers: Callers) -> None:
    key = callers.ann["Authorization"].removeprefix("Bearer ")
    job_id = post(client, callers.ann, user="someone", metadata={"a": "b"})
    assert redis.hget(job_key(job_id), "adm_caller") == key[4:16].encode()
    redis.config_set("rdbcompression", "no")  # or a dump would hide its contents
    everything = b"".join(redis.dump(each) or b"" for each in redis.scan_iter("*"))
    assert key[17:].encode() not in everything
    assert hashlib.sha256(key.encode()).hexdigest().encode() in everything
    assert key[17:] not in json.dumps(client.get(f"/v1/jobs/{job_id}", headers=callers.ann).json())


def test_nothing_of_a_callers_jobs_stays_when_they_are_over(
    client: httpx2.Client, redis: Redis, service_settings: Settings, callers: Callers, done: dict[str, Any]
) -> None:
    images = ImageStore(service_settings.store_address)
    queue = JobQueue(redis, service_settings, images)
    removed = post(client, callers.ann)
    client.post(f"/v1/jobs/{removed}/cancel", headers=callers.ann)
    while client.get(f"/v1/jobs/{removed}", headers=callers.ann).json()["status"] != "cancelled":
        pass
    for member in cast(list[bytes], redis.zrange(keys.ENDED, 0, -1)):
        redis.zadd(keys.ENDED, {member: 1})
    redis.delete(job_key(removed))  # its time is over: Redis removes the hash by itself
    Cleaner(redis, queue.ledger, images, queue.files, 10).remove_ended()
    assert client.get("/v1/jobs", headers=callers.ann).json()["data"] == []
    caller = callers.ann["Authorization"][11:23]
    assert not [each for each in redis.scan_iter("*") if caller.encode() in each]
    assert not redis.exists(keys.JOB_CALLERS)
