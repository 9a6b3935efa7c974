"""The audit log of a service: each call that may change something, by whom, about what, and how it ended."""

import json
import re
import socket
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body, running_service

pytestmark = [pytest.mark.process, pytest.mark.slow]

Line = dict[str, Any]


def audited(lines: list[str]) -> list[Line]:
    return [line for each in lines if (line := json.loads(each))["event"] == "audit"]


def test_every_change_is_logged_with_its_caller_and_its_target(
    redis: Redis, service_settings: Settings, worker: ToyWorker, make_key: MakeKey
) -> None:
    worker.hold()
    ann, bob = make_key("ann"), make_key("bob")
    with (
        running_service(service_settings) as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        sent = body(user="a person", metadata={"note": "hush-hush"})
        job_id = client.post("/v1/jobs", json=sent, headers=ann | {"X-Request-ID": "r-1"}).json()["id"]
        client.get(f"/v1/jobs/{job_id}", headers=ann)
        client.post(f"/v1/jobs/{job_id}/cancel", headers=bob)
        client.post(f"/v1/jobs/{job_id}/cancel", headers=ann)
        file_id = client.post("/v1/files", content=png(), headers=bob).json()["id"]
        client.delete(f"/v1/files/{file_id}", headers=bob)
        client.delete(f"/v1/jobs/{job_id}", headers=ann)
        client.post("/v1/jobs", json={"steps": 0}, headers=ann)
        made = client.post("/v1/jobs", json={"items": [body(), body()]}, headers=ann).json()["data"]
        client.post("/v1/jobs", json=sent)
        client.post("/v1/nothing%0a", headers=ann)
    callers = [each["Authorization"][11:23] for each in (ann, bob)]
    fields = ("caller", "action", "target", "outcome", "status")
    found = [tuple(each[name] for name in fields) for each in audited(lines)]
    assert found == [
        (callers[0], "create_job", job_id, "done", 202),
        (callers[1], "cancel_job", job_id, "refused", 404),
        (callers[0], "cancel_job", job_id, "done", 200),
        (callers[1], "create_file", file_id, "done", 201),
        (callers[1], "delete_file", file_id, "done", 204),
        (callers[0], "delete_job", job_id, "done", 204),
        (callers[0], "create_job", "", "refused", 422),
        (callers[0], "create_job", f"{made[0]['id']} {made[1]['id']}", "done", 202),
        ("", "POST", "/v1/jobs", "refused", 401),
        (callers[0], "POST", r"/v1/nothing\n", "refused", 404),
    ]
    assert audited(lines)[0]["request_id"] == "r-1"
    text = "".join(lines)
    for hidden in (ann["Authorization"][24:], bob["Authorization"][24:], "a person", "hush-hush"):
        assert hidden not in text


def test_without_keys_nothing_is_audited(redis: Redis, service_settings: Settings, worker: ToyWorker) -> None:
    with running_service(service_settings) as (address, _, lines):
        assert httpx2.post(f"{address}/v1/jobs", json=body(), timeout=60).status_code in (202, 503)
    assert audited(lines) == []


def test_a_pipelined_request_is_not_logged_as_the_one_before_it(
    redis: Redis, service_settings: Settings, worker: ToyWorker, make_key: MakeKey
) -> None:
    sent = json.dumps(body()).encode()
    head = f"Host: localhost\r\nAuthorization: {make_key('ann')['Authorization']}\r\nContent-Type: application/json\r\n"
    first = f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent
    with (
        running_service(service_settings) as (address, _, lines),
        socket.create_connection(("127.0.0.1", httpx2.URL(address).port or 0)) as client,
    ):
        client.sendall(first + b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answered = b"".join(iter(lambda: client.recv(65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"202", b"401"]
    queued, refused = (line for each in lines if (line := json.loads(each))["event"] == "request")
    assert {"caller", "job_id"} <= queued.keys()
    assert refused["status"] == 401
    assert not {"caller", "job_id"} & refused.keys()
