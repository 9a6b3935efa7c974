"""Limits on the time that a client can take: a real service with short ones, and raw connections."""

import socket
import time
from collections.abc import Iterator

import psutil
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.service.conftest import running_service
from tests.service.raw_connection import GET, RawConnection

pytestmark = pytest.mark.process

SECONDS = 2.0  # that the hasty service gives a client; more than two lines of a test need on a busy machine


@pytest.fixture(scope="module")
def hasty(service_settings: Settings) -> Iterator[tuple[str, "psutil.Process"]]:
    """A service with short limits on the time that a client may take."""
    variables = {"ADM_CLIENT_SECONDS": str(SECONDS), "ADM_KEEP_ALIVE_SECONDS": str(round(10 * SECONDS))}
    with running_service(service_settings, **variables) as (address, process, _):
        yield address, psutil.Process(process.pid)


@pytest.fixture
def slow_caller(hasty: tuple[str, "psutil.Process"], redis: Redis) -> Iterator[RawConnection]:
    caller = RawConnection(hasty[0])
    yield caller
    caller.socket.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"G",
        b"GET /livez HTTP/1.1\r\nHo",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ],
)
def test_request_that_does_not_arrive_in_time_is_answered_408(slow_caller: RawConnection, sent: bytes) -> None:
    slow_caller.send(sent)
    status, content = slow_caller.error()
    assert status == 408
    assert "ADM_CLIENT_SECONDS" in str(content["detail"])


def test_request_that_drips_in_is_answered_408(slow_caller: RawConnection) -> None:
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
def test_connection_that_sends_no_request_is_ended(slow_caller: RawConnection, sent: bytes) -> None:
    slow_caller.send(sent)
    assert slow_caller.rest() == b""


@pytest.mark.slow
def test_connection_stays_open_between_requests_and_ends_after_keep_alive(slow_caller: RawConnection) -> None:
    slow_caller.send(GET)
    assert slow_caller.status() == 200
    time.sleep(SECONDS * 1.5)  # longer than a request may take to arrive, and shorter than keep-alive
    slow_caller.send(GET)
    assert slow_caller.status() == 200
    slow_caller.send(b"\r\n")
    assert slow_caller.rest() == b""


@pytest.mark.slow
def test_client_that_takes_no_answer_is_cut_off(
    slow_caller: RawConnection, hasty: tuple[str, "psutil.Process"]
) -> None:
    slow_caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow_caller.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 16)
    own = slow_caller.socket.getsockname()[1]
    while any(each.raddr[1:] == (own,) for each in hasty[1].net_connections("tcp")):
        time.sleep(0.05)
