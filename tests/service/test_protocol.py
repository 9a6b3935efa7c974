"""Limits on the size and number of requests: a real service with small limits, and raw connections."""

import asyncio
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest
import uvloop
from redis import Redis

from jobs.settings import Settings
from service.protocol import WhileOpen
from tests.service.conftest import running_service
from tests.service.raw_connection import GET, RawConnection

pytestmark = pytest.mark.process

HEADER_BYTES = 2048
CONNECTIONS = 24


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
def caller(limited: tuple[str, "psutil.Process"], redis: Redis) -> Iterator[RawConnection]:
    caller = RawConnection(limited[0])
    yield caller
    caller.socket.close()


@pytest.mark.parametrize("head", [b"GET /livez HTTP/1.1\r\nX-Long: ", b"GET /livez?", b"GET /livez HTTP/1.1\r\n"])
def test_head_without_an_end_is_refused_at_the_limit(caller: RawConnection, head: bytes) -> None:
    caller.send(head)
    caller.send(b"X: y\r\n" * 100_000 if head.endswith(b"\n") else b"a" * 600_000)
    status, content = caller.error()
    assert status == 431
    assert "ADM_MAX_HEADER_BYTES" in str(content["detail"])


@pytest.mark.parametrize("endless", [b"0\r\nX-Trailer: ", b"0\r\n", b"1;extension="])
def test_chunked_body_whose_framing_has_no_end_is_refused(caller: RawConnection, endless: bytes) -> None:
    caller.send(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n" + endless
    )
    caller.send(b"X: y\r\n" * 100_000 if endless == b"0\r\n" else b"a" * 600_000)
    assert caller.error()[0] == 431


def test_trailers_are_no_headers(caller: RawConnection) -> None:
    caller.send(
        b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\n{\r\n0\r\nX-Request-ID: trailer\r\n\r\n"
    )
    assert b"trailer" not in caller.socket.recv(9999)


def test_head_that_is_complete_is_refused_above_the_limit_alone(caller: RawConnection) -> None:
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n"
    caller.send(head % (b"a" * (HEADER_BYTES - 100)))
    assert caller.status() == 200
    caller.send(head % (b"a" * HEADER_BYTES))
    assert caller.error()[0] == 431


def test_pipelined_requests_cost_bounded_memory(caller: RawConnection, limited: tuple[str, "psutil.Process"]) -> None:
    before = limited[1].memory_info().rss
    caller.socket.settimeout(1)
    caller.send(GET * 200_000)
    assert limited[1].memory_info().rss - before < 16 << 20


def test_few_pipelined_requests_are_answered_in_order_and_all(caller: RawConnection) -> None:
    paths = ["/livez", "/nothing", "/livez", "/v1/nothing"]
    for path in paths[:-1]:
        caller.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    caller.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % paths[-1].encode())
    answers = caller.rest().split(b"HTTP/1.1 ")[1:]
    assert [each[:3] for each in answers] == [b"200", b"404", b"200", b"404"]


def test_many_pipelined_requests_are_all_answered(caller: RawConnection) -> None:
    caller.send(GET * 1000 + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert caller.rest().count(b"HTTP/1.1 200 OK") == 1001


def test_connections_above_the_limit_are_answered_503_and_room_comes_back(limited: tuple[str, object]) -> None:
    callers = [RawConnection(limited[0]) for _ in range(CONNECTIONS)]
    refused = RawConnection(limited[0])
    status, content = refused.error()
    assert status == 503
    assert "ADM_MAX_CONNECTIONS" in str(content["detail"])
    first, *others = callers
    first.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert first.rest().startswith(b"HTTP/1.1 200")  # the service has closed it
    newcomer = RawConnection(limited[0])
    newcomer.send(GET)
    assert newcomer.status() == 200
    for each in (first, *others, refused, newcomer):
        each.socket.close()


def test_what_is_not_http_is_a_problem(caller: RawConnection) -> None:
    caller.send(b"NONSENSE\r\n\r\n")
    assert caller.error()[0] == 400


def test_offer_of_another_protocol_is_answered_in_this_one(caller: RawConnection) -> None:
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


def test_transfer_coding_that_is_not_understood_is_refused(caller: RawConnection) -> None:
    caller.send(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
    assert caller.status() == 501
