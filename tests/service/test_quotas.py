"""A caller over its quota: 429 with the headers of draft-ietf-httpapi-ratelimit-headers, and nobody else affected."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.service.test_jobs import is_problem

pytestmark = pytest.mark.process

QUOTAS = {"ADM_QUOTA_POSTS": "5", "ADM_QUOTA_DEVICE_SECONDS": "3", "ADM_QUOTA_QUEUED_SECONDS": "2"}
POLICY = re.compile(r'"([a-z-]+)";q=(\d+)(?:;w=(\d+))?')
LIMIT = re.compile(r'"([a-z-]+)";r=(\d+)(?:;t=(\d+))?')


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings, **QUOTAS) as (address, _, _):
        yield address


def is_refused(answer: httpx2.Response, policy: str, quota: int, window: str | None) -> bool:
    """Return whether an answer reports the exceeded quota in the right form."""
    assert is_problem(answer, 429)
    problem = answer.json()
    assert problem["type"] == "urn:adm:problem:over-quota"
    assert "ADM_QUOTA" in problem["detail"]
    policies = POLICY.fullmatch(answer.headers["ratelimit-policy"])
    limits = LIMIT.fullmatch(answer.headers["ratelimit"])
    assert policies is not None
    assert limits is not None
    assert policies[1] == limits[1]
    assert int(limits[2]) <= int(policies[2])
    assert limits[3] == answer.headers.get("retry-after")
    return (policies[1], int(policies[2]), policies[3]) == (policy, quota, window)


def test_posts_over_the_quota_are_429_and_others_continue(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    ann, bob, root = make_key("ann"), make_key("bob"), make_key("root", Role.OPERATOR)
    cheap = body(steps=1, upsample=False)
    for _ in range(3):
        assert client.post("/v1/jobs", json=cheap, headers=ann).status_code == 202
    assert client.post("/v1/files", content=png(), headers=ann).status_code == 201
    assert is_problem(client.post("/v1/jobs", json=body(model="none"), headers=ann), 422, "/model")
    answer = client.post("/v1/jobs", json=cheap, headers=ann)
    assert is_refused(answer, "posts", 5, "60")
    assert 0 < int(answer.headers["retry-after"]) <= 120
    assert is_refused(client.post("/v1/files", content=png(1), headers=ann), "posts", 5, "60")
    assert is_refused(client.post("/v1/requests/from-image", content=png(1), headers=ann), "posts", 5, "60")
    assert client.get("/v1/jobs", headers=ann).status_code == 200
    assert client.post("/v1/jobs", json=cheap, headers=bob).status_code == 202
    for _ in range(7):
        assert client.post("/v1/jobs", json=cheap, headers=root).status_code == 202


def test_reading_the_request_of_a_picture_is_charged_as_a_post(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    """Such a call may send as many bytes as an upload, so a caller could evade the quota of posts by it."""
    ann = make_key("ann")
    for _ in range(5):
        assert is_problem(client.post("/v1/requests/from-image", content=png(), headers=ann), 422, "/file")
    assert is_refused(client.post("/v1/jobs", json=body(), headers=ann), "posts", 5, "60")


def test_picture_of_an_edit_is_charged_before_it_is_decoded(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    ann = make_key("ann")
    edit: dict[str, Any] = {"data": {"prompt": "torus"}, "files": {"image": b"no picture"}, "headers": ann}
    for _ in range(5):
        assert client.post("/v1/images/edits", **edit).status_code == 400
    assert client.post("/v1/images/edits", **edit).status_code == 429


def test_device_seconds_over_the_quota_are_429(client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey) -> None:
    fleet.release()
    ann = make_key("ann")
    costly = body(steps=25, n=16, upsample=False)  # 25 steps of 80 ms
    assert client.post("/v1/jobs", json=costly, headers=ann | {"Prefer": "wait=30"}).status_code == 200
    assert is_refused(client.post("/v1/jobs", json=costly, headers=ann), "device-seconds", 3, "60")
    larger = client.post("/v1/jobs", json=body(steps=250, n=16, upsample=False), headers=ann)
    assert is_problem(larger, 429)


def test_queued_work_over_the_quota_is_429_until_some_has_gone(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    ann, root = make_key("ann"), make_key("root", Role.OPERATOR)
    for _ in range(2):  # the worker takes 64 images, and keeps them
        client.post("/v1/jobs", json=body(n=32), headers=root)
    while client.get("/v1/jobs", headers=root, params={"status": "queued"}).json()["data"]:
        pass
    queued = client.post("/v1/jobs", json=body(steps=20, n=16, upsample=False), headers=ann)
    assert queued.status_code == 202
    answer = client.post("/v1/jobs", json=body(steps=8, n=16, upsample=False), headers=ann)
    assert is_refused(answer, "queued-device-seconds", 2, None)
    client.post(f"/v1/jobs/{queued.json()['id']}/cancel", headers=ann)
    assert client.post("/v1/jobs", json=body(steps=8, n=16, upsample=False), headers=ann).status_code == 202


def test_without_keys_there_are_no_quotas(client: httpx2.Client, fleet: ToyWorker) -> None:
    for _ in range(8):
        assert client.post("/v1/jobs", json=body(steps=1)).status_code == 202
