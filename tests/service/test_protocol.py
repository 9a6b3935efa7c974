"""Limits on the memory and time that a client can take: a real service with small limits, and raw connections."""

import asyncio
import io
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from http.client import HTTPResponse

import httpx2
import psutil
import pytest
import uvloop
from PIL import Image
from redis import Redis

from jobs.settings import Settings
from service.protocol import WhileOpen, counted_as
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.waiting import eventually

pytestmark = pytest.mark.process

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEADER_BYTES = 2048
CONNECTIONS = 24
SECONDS = 2.0  # that the hasty service gives a client; more than two lines of a test need on a busy machine


class Caller:
    """One raw connection."""

    def __init__(self, address: str, source: str = "127.0.0.1") -> None:
        host, port = address.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=300, source_address=(source, 0))

    def send(self, data: bytes) -> None:
        """Send what is taken: the service may have ended the connection meanwhile."""
        try:
            self.socket.sendall(data)
        except OSError:
            return

    def rest(self) -> bytes:
        """All that the service sends until it ends the connection."""
        received = b""
        try:
            while piece := self.socket.recv(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
        return received

    def status(self) -> int:
        """The status of the next answer, which is read to its end."""
        with HTTPResponse(self.socket) as response:
            response.begin()
            response.read()
            return response.status

    def error(self) -> tuple[int, dict[str, object]]:
        """The problem that ends the connection."""
        head, _, body = self.rest().partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert b"x-request-id: " in head
        content = json.loads(body)
        assert content["status"] == int(head.split()[1])
        return content["status"], content


@pytest.fixture(scope="module")
def limited(service_settings: Settings) -> Iterator[tuple[str, "psutil.Process"]]:
    variables = {
        "ADM_CLIENT_SECONDS": "300",
        "ADM_MAX_HEADER_BYTES": str(HEADER_BYTES),
        "ADM_MAX_CONNECTIONS": str(CONNECTIONS),
    }
    with running_service(service_settings, **variables) as (address, process, _):
        yield address, psutil.Process(process.pid)


@pytest.fixture
def caller(limited: tuple[str, "psutil.Process"], redis: Redis) -> Iterator[Caller]:
    caller = Caller(limited[0])
    yield caller
    caller.socket.close()


@pytest.fixture(scope="module")
def hasty(service_settings: Settings) -> Iterator[tuple[str, "psutil.Process"]]:
    """A service with short limits on the time that a client may take."""
    variables = {"ADM_CLIENT_SECONDS": str(SECONDS), "ADM_KEEP_ALIVE_SECONDS": str(round(10 * SECONDS))}
    with running_service(service_settings, **variables) as (address, process, _):
        yield address, psutil.Process(process.pid)


@pytest.fixture
def slow_caller(hasty: tuple[str, "psutil.Process"], redis: Redis) -> Iterator[Caller]:
    caller = Caller(hasty[0])
    yield caller
    caller.socket.close()


@pytest.mark.parametrize("head", [b"GET /livez HTTP/1.1\r\nX-Long: ", b"GET /livez?", b"GET /livez HTTP/1.1\r\n"])
def test_head_without_an_end_is_refused_at_the_limit(caller: Caller, head: bytes) -> None:
    caller.send(head)
    caller.send(b"X: y\r\n" * 100_000 if head.endswith(b"\n") else b"a" * 600_000)
    status, content = caller.error()
    assert status == 431
    assert "ADM_MAX_HEADER_BYTES" in str(content["detail"])


@pytest.mark.parametrize("endless", [b"0\r\nX-Trailer: ", b"0\r\n", b"1;extension="])
def test_chunked_body_whose_framing_has_no_end_is_refused(caller: Caller, endless: bytes) -> None:
    caller.send(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n" + endless
    )
    caller.send(b"X: y\r\n" * 100_000 if endless == b"0\r\n" else b"a" * 600_000)
    assert caller.error()[0] == 431


def test_trailers_are_no_headers(caller: Caller) -> None:
    caller.send(
        b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\n{\r\n0\r\nX-Request-ID: trailer\r\n\r\n"
    )
    assert b"trailer" not in caller.socket.recv(9999)


def test_head_that_is_complete_is_refused_above_the_limit_alone(caller: Caller) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n"
    caller.send(head % (b"a" * (HEADER_BYTES - 100)))
    assert caller.status() == 200
    caller.send(head % (b"a" * HEADER_BYTES))
    assert caller.error()[0] == 431


def test_pipelined_requests_cost_bounded_memory(caller: Caller, limited: tuple[str, "psutil.Process"]) -> None:
    before = limited[1].memory_info().rss
    caller.socket.settimeout(1)
    caller.send(GET * 200_000)
    assert limited[1].memory_info().rss - before < 16 << 20


def test_few_pipelined_requests_are_answered_in_order_and_all(caller: Caller) -> None:
    paths = ["/livez", "/nothing", "/livez", "/v1/nothing"]
    for path in paths[:-1]:
        caller.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    caller.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % paths[-1].encode())
    answers = caller.rest().split(b"HTTP/1.1 ")[1:]
    assert [each[:3] for each in answers] == [b"200", b"404", b"200", b"404"]


def test_many_pipelined_requests_are_all_answered(caller: Caller) -> None:
    caller.send(GET * 1000 + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert caller.rest().count(b"HTTP/1.1 200 OK") == 1001


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET /livez HTTP/1.1\r\nHo",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
)
def test_request_that_does_not_arrive_in_time_is_answered_408(slow_caller: Caller, sent: bytes) -> None:
    slow_caller.send(sent)
    status, content = slow_caller.error()
    assert status == 408
    assert "ADM_CLIENT_SECONDS" in str(content["detail"])


def test_request_that_drips_in_is_answered_408(slow_caller: Caller) -> None:
    slow_caller.socket.settimeout(0.05)
    received = b""
    slow_caller.send(b"GET /livez HTTP/1.1\r\nX-Slow: ")
    while not received:
        slow_caller.send(b"a")
        try:
            received = slow_caller.socket.recv(9999)
        except TimeoutError:
            continue
    assert received.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_connection_that_sends_no_request_is_ended(slow_caller: Caller, sent: bytes) -> None:
    slow_caller.send(sent)
    assert slow_caller.rest() == b""


@pytest.mark.slow
def test_connection_stays_open_between_requests_and_ends_after_keep_alive(slow_caller: Caller) -> None:
    slow_caller.send(GET)
    assert slow_caller.status() == 200
    time.sleep(SECONDS * 1.5)  # longer than a request may take to arrive, and shorter than keep-alive
    slow_caller.send(GET)
    assert slow_caller.status() == 200
    slow_caller.send(b"\r\n")
    assert slow_caller.rest() == b""


@pytest.mark.slow
def test_client_that_takes_no_answer_is_cut_off(slow_caller: Caller, hasty: tuple[str, "psutil.Process"]) -> None:
    slow_caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow_caller.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 16)
    own = slow_caller.socket.getsockname()[1]
    while any(each.raddr[1:] == (own,) for each in hasty[1].net_connections("tcp")):
        time.sleep(0.05)


def test_connections_above_the_limit_are_answered_503_and_room_comes_back(limited: tuple[str, object]) -> None:
    callers = [Caller(limited[0]) for _ in range(CONNECTIONS)]
    refused = Caller(limited[0])
    status, content = refused.error()
    assert status == 503
    assert "ADM_MAX_CONNECTIONS" in str(content["detail"])
    first, *others = callers
    first.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert first.rest().startswith(b"HTTP/1.1 200")  # the service has closed it
    newcomer = Caller(limited[0])
    newcomer.send(GET)
    assert newcomer.status() == 200
    for each in (first, *others, refused, newcomer):
        each.socket.close()


def test_what_is_not_http_is_a_problem(caller: Caller) -> None:
    caller.send(b"NONSENSE\r\n\r\n")
    assert caller.error()[0] == 400


def test_offer_of_another_protocol_is_answered_in_this_one(caller: Caller) -> None:
    caller.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert caller.rest().startswith(b"HTTP/1.1 200")


def test_answer_to_a_client_that_has_reset_the_connection_is_dropped() -> None:
    """uvloop raises as soon as the socket is closed; the protocol is notified a turn of the loop later."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.Transport] = loop.create_future()

        class Server(asyncio.Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a TCP server's
                made.set_result(transport)

        server = await loop.create_server(Server, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport = await made
        while not transport.is_closing():
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="the handler is closed"):
            transport.write(b"x")
        WhileOpen(transport).write(b"x")
        server.close()

    uvloop.run(scenario())


@pytest.fixture(scope="module")
def small(service_settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """A service with a small limit for all callers together and long waits for each: its address and log."""
    variables = {
        "ADM_MAX_CONNECTIONS_PER_ADDRESS": "20",
        "ADM_MAX_UNREAD_BYTES": str(1 << 18),
        "ADM_MAX_INCOMING_BYTES": str(1 << 20),
    }
    with running_service(service_settings, **variables) as (address, _, lines):
        yield address, lines


def test_one_address_cannot_take_the_connections_of_others(small: tuple[str, list[str]], redis: Redis) -> None:
    callers = [Caller(small[0]) for _ in range(20)]
    refused, other = Caller(small[0]), Caller(small[0], source="127.0.0.2")
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
    streams = [Caller(address) for _ in range(15)]
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


def test_answers_that_nobody_reads_are_dropped_and_others_continue(small: tuple[str, list[str]], redis: Redis) -> None:
    address, lines = small
    silent = [Caller(address, source="127.0.0.3") for _ in range(10)]
    for each in silent:
        each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # the system takes some 4 MB of each; 64 KiB more wait in the service
        each.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 120)
    while not any("unread_answer_dropped" in line and "ADM_MAX_UNREAD_BYTES" in line for line in lines):
        time.sleep(0.05)
    reader = Caller(address, source="127.0.0.4")
    reader.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert reader.status() == 200
    for each in (*silent, reader):
        each.socket.close()


def test_bodies_that_arrive_at_the_same_time_are_bounded_together(small: tuple[str, list[str]], redis: Redis) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 900000\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    slow, second = Caller(small[0], source="127.0.0.5"), Caller(small[0], source="127.0.0.5")
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
    modest = Caller(small[0], source="127.0.0.5")
    modest.send(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    with HTTPResponse(modest.socket) as answer:
        answer.begin()
        assert b"ADM_MAX_INCOMING_BYTES" not in answer.read(), "small bodies are not refused for large ones of others"
    slow.send(b"x" * 100_000)
    assert slow.status() == 422, "the first is read to its end: it is no picture"
    for each in (slow, second, modest):
        each.socket.close()


def test_caller_that_sends_large_bodies_leaves_others_their_share(
    small: tuple[str, list[str]], redis: Redis, make_key: MakeKey
) -> None:
    def begun(key: dict[str, str]) -> Caller:
        """A caller whose upload the service has begun to read."""
        caller = Caller(small[0], source="127.0.0.7")
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
    assert other.status() == 422, "it is read to its end: it is no picture"
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
        client = Caller(address, source="127.0.0.6")
        client.send(head.encode() + b"30D40\r\n" + bytes(200_000) + b"\r\n0\r\n\r\n")
        assert client.socket.recv(15) == b"HTTP/1.1 200 OK"
        client.socket.close()
    noise = io.BytesIO()
    Image.frombytes("RGB", (240, 240), os.urandom(3 * 240**2)).save(noise, "png")
    assert httpx2.post(f"{address}/v1/files", files={"file": noise.getvalue()}, timeout=60).status_code == 201
    assert not [line for line in lines if '"event": "failed"' in line]


def test_transfer_coding_that_is_not_understood_is_refused(caller: Caller) -> None:
    caller.send(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
    assert caller.status() == 501


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
