"""Limits on what one address or caller can take from the others: connections, unread answers, bodies."""

import io
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from PIL import Image
from redis import Redis

from jobs.settings import Settings
from service.protocol import counted_as
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.service.raw_connection import GET, RawConnection
from tests.waiting import eventually

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def small(service_settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Start a service with a small total limit and long timeouts; return its address and log."""
    variables = {
        "ADM_MAX_CONNECTIONS_PER_ADDRESS": "20",
        "ADM_MAX_UNREAD_BYTES": str(1 << 18),
        "ADM_MAX_INCOMING_BYTES": str(1 << 20),
    }
    with running_service(service_settings, **variables) as (address, _, lines):
        yield address, lines


def test_one_address_cannot_take_the_connections_of_others(small: tuple[str, list[str]], redis: Redis) -> None:
    callers = [RawConnection(small[0]) for _ in range(20)]
    refused, other = RawConnection(small[0]), RawConnection(small[0], source="127.0.0.2")
    status, content = refused.error()
    assert status == 503
    assert "ADM_MAX_CONNECTIONS_PER_ADDRESS" in str(content["detail"])
    other.send(GET)
    assert other.status() == 200
    for each in (*callers, refused, other):
        each.socket.close()


def test_one_caller_leaves_connections_of_a_shared_address_to_others(
    small: tuple[str, list[str]], redis: Redis, make_key: MakeKey, worker: ToyWorker
) -> None:
    """Behind a proxy all callers have its address: here 20 connections, of which one caller may use 15."""
    address, _ = small
    many, one = make_key("many"), make_key("one")
    worker.hold()
    with httpx2.Client(base_url=address, headers=many, timeout=60) as client:
        job_id = client.post("/v1/jobs", json=body()).json()["id"]
    lines = f"Host: localhost\r\nAuthorization: {many['Authorization']}\r\n\r\n"
    streams = [RawConnection(address) for _ in range(15)]
    for each in streams:
        each.send(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\n{lines}".encode())
        assert each.socket.recv(15) == b"HTTP/1.1 200 OK"
    refused = httpx2.get(f"{address}/v1/caller", headers=many, timeout=60)
    assert (refused.status_code, "you have 15 requests open" in refused.json()["detail"]) == (503, True)
    assert httpx2.get(f"{address}/v1/caller", headers=one, timeout=60).status_code == 200
    streams[0].socket.close()
    eventually(
        lambda: httpx2.get(f"{address}/v1/caller", headers=many, timeout=60).status_code == 200, "the stream has ended"
    )
    for each in streams:
        each.socket.close()


def test_requests_sent_ahead_in_many_connections_do_not_all_go_before_another_addresss(
    service_settings: Settings, redis: Redis
) -> None:
    """The log has the order of answers: between two of one connection, each of the 100 others would have one too."""
    with running_service(service_settings) as (address, _, lines):
        ahead = [RawConnection(address) for _ in range(100)]
        for each in ahead:
            each.send(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
        other = RawConnection(address, source="127.0.0.2")
        other.send(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 7)
        other.send(b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert other.rest().count(b"HTTP/1.1 200 OK") == 8
        for each in (*ahead, other):
            each.socket.close()
    answered = [json.loads(line)["client"].partition(":")[0] for line in lines if '"request"' in line]
    places = [place for place, client in enumerate(answered) if client == "127.0.0.2"]
    assert len(places) == 8
    assert len(answered) > places[-1] + 100, "the others still had requests"
    assert max(after - before for before, after in pairwise(places)) < 50


def test_answers_that_nobody_reads_are_dropped_and_others_continue(small: tuple[str, list[str]], redis: Redis) -> None:
    address, lines = small
    silent = [RawConnection(address, source="127.0.0.3") for _ in range(10)]
    for each in silent:
        each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # the system takes some 4 MB of each; 64 KiB more wait in the service
        each.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 120)
    while not any("unread_answer_dropped" in line and "ADM_MAX_UNREAD_BYTES" in line for line in lines):
        time.sleep(0.05)
    reader = RawConnection(address, source="127.0.0.4")
    reader.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert reader.status() == 200
    for each in (*silent, reader):
        each.socket.close()


def test_bodies_that_arrive_at_the_same_time_are_bounded_together(small: tuple[str, list[str]], redis: Redis) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 900000\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    slow, second = RawConnection(small[0], source="127.0.0.5"), RawConnection(small[0], source="127.0.0.5")
    slow.send(head)
    assert slow.socket.recv(100).startswith(b"HTTP/1.1 100")  # its route reads on
    slow.send(b"x" * 800_000)
    second.send(head)
    assert second.socket.recv(100).startswith(b"HTTP/1.1 100")
    second.send(b"y" * 800_000)
    with HTTPResponse(second.socket) as refused:
        refused.begin()
        assert refused.status == 503
        assert b"ADM_MAX_INCOMING_BYTES" in refused.read()
    modest = RawConnection(small[0], source="127.0.0.5")
    modest.send(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    with HTTPResponse(modest.socket) as answer:
        answer.begin()
        assert b"ADM_MAX_INCOMING_BYTES" not in answer.read(), "small bodies are not refused for large ones of others"
    slow.send(b"x" * 100_000)
    assert slow.status() == 422, "the first body was read completely and is no picture"
    for each in (slow, second, modest):
        each.socket.close()


def test_caller_that_sends_large_bodies_leaves_others_their_share(
    small: tuple[str, list[str]], redis: Redis, make_key: MakeKey
) -> None:
    def begun(key: dict[str, str]) -> RawConnection:
        """A caller whose upload the service has begun to read."""
        caller = RawConnection(small[0], source="127.0.0.7")
        caller.send(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 500000\r\n"
            b"Authorization: %s\r\nExpect: 100-continue\r\n\r\n" % key["Authorization"].encode()
        )
        assert caller.socket.recv(100).startswith(b"HTTP/1.1 100")
        return caller

    many, one = make_key("many"), make_key("one")
    uploads = [begun(many), begun(many)]
    for each in uploads:
        each.send(b"x" * 499_999)
    other = begun(one)
    other.send(b"x" * 500_000)
    assert other.status() == 422, "the body was read completely and is no picture"
    ((readable,), _, _) = select.select([each.socket for each in uploads], [], [], 300)
    with HTTPResponse(readable) as refused:
        refused.begin()
        assert refused.status == 503, "a body of the caller that held the most"
        assert b"ADM_MAX_INCOMING_BYTES" in refused.read()
    (kept,) = (each for each in uploads if each.socket is not readable)
    kept.send(b"x")
    assert kept.status() == 422
    for each in (*uploads, other):
        each.socket.close()


@pytest.mark.slow
def test_body_sent_to_a_stream_takes_no_room_from_uploads(
    small: tuple[str, list[str]], redis: Redis, worker: ToyWorker
) -> None:
    """Bodies above 64 KiB count while they are received, and no longer than that."""
    address, lines = small
    worker.hold()
    job_id = httpx2.post(f"{address}/v1/jobs", json=body(), timeout=60).json()["id"]
    head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(20):
        client = RawConnection(address, source="127.0.0.6")
        client.send(head.encode() + b"30D40\r\n" + bytes(200_000) + b"\r\n0\r\n\r\n")
        assert client.socket.recv(15) == b"HTTP/1.1 200 OK"
        client.socket.close()
    assert httpx2.post(f"{address}/v1/files", files={"file": noise(240)}, timeout=60).status_code == 201
    assert not [line for line in lines if '"event": "failed"' in line]


@pytest.mark.slow
def test_body_of_an_edit_takes_no_room_from_uploads_while_its_job_runs(
    small: tuple[str, list[str]], redis: Redis, worker: ToyWorker
) -> None:
    address, _ = small
    worker.hold()
    with httpx2.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(1) as other:
        form: dict[str, Any] = {"data": {"prompt": "torus"}, "files": {"image": noise(520)}}
        edit = other.submit(httpx2.post, f"{address}/v1/images/edits", timeout=60, **form)
        eventually(lambda: client.get("/v1/jobs").json()["data"], "its job is queued")
        assert client.post("/v1/files", files={"file": noise(520)}).status_code == 201, "1.6 MB in all, of 1 MiB"
        worker.release()
        assert edit.result().status_code == 200


def noise(side_px: int) -> bytes:
    """A PNG of three bytes for each pixel."""
    file = io.BytesIO()
    Image.frombytes("RGB", (side_px, side_px), os.urandom(3 * side_px**2)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_that_one_host_may_use_are_counted_as_one(address: str, counted: str) -> None:
    assert counted_as(address) == counted
