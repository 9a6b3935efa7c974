"""uvicorn's HTTP protocol with limits on the memory and time that a client can use.

docs/decisions/0016-http-server.md compares servers and gives the reasons for the limits.
"""

import asyncio
import ipaddress
import json
import re
from collections import Counter
from functools import partial
from typing import ClassVar, Literal, NamedTuple, cast
from uuid import uuid4

import httptools
import structlog
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS, content_of
from service.starts import Starts

log = structlog.get_logger("service.protocol")

MAX_PIPELINED = 16  # requests of a connection that may wait for earlier answers; then parsing stops
PARSED_BYTES = 1024  # bytes parsed at once; few, because all requests in them are started
MAX_HELD_BYTES = 1 << 20  # received and not parsed; a read is up to 256 KiB
PIECE_BYTES = 65_536  # the part of a body or of an answer for which a client has Limits.client_seconds
ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")  # of a request's target
LINGER_SECONDS = 2.0  # for a refused client to read the answer


class Limits(NamedTuple):
    """Limits for clients; the settings with these names describe them."""

    max_connections: int
    max_connections_per_address: int
    max_header_bytes: int
    max_unread_bytes: int
    client_seconds: float


class StopParsingError(Exception):
    """Stops the parser in the middle of what was received."""


class WhileOpen:
    """A transport that drops writes once it is closing, because uvloop raises before it reports a disconnect."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.close, self.is_closing = transport.close, transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `limited` makes a subclass with the limits of a server.

    It answers 431 for a head that is too large, 408 for a head or a body that arrives too slowly, 400 for data that are
    not HTTP, and 503 for one connection too many. It reads about MAX_PIPELINED requests ahead; addresses take turns at
    the start of their requests. It ends a connection whose client reads its answer too slowly. If the unread bytes of
    all connections exceed their limit, it ends the connections with the most of them.
    """

    # in slots, because these attributes would double the size of a connection's dictionary
    __slots__ = (
        "_address",
        "_answers",
        "_arriving",
        "_framing_bytes",
        "_held",
        "_is_one_too_many",
        "_is_refused",
        "_num_bytes",
        "_num_requests",
        "_reading",
        "_writing",
    )

    limits: ClassVar[Limits]
    unread: ClassVar[dict["LimitedProtocol", None]]  # connections whose answer waits for its client
    addresses: ClassVar[Counter[str]]  # open connections of each address or network (`counted_as`)
    starts: ClassVar[Starts]  # requests of all connections that are to be started

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own signature
        super().connection_made(transport)
        self._arriving: Literal["head", "body"] | None = None  # the part of a request that is arriving
        self._num_bytes = 0  # of that part, since its timer was set
        self._framing_bytes = 0  # of a body, since its last byte: extensions of chunks, trailers
        self._num_requests = 0
        self._answers = WhileOpen(transport)
        self._held = bytearray()  # received and not parsed yet
        self._is_refused = False  # True: nothing more is read
        self._reading = self.loop.call_later(self.limits.client_seconds, self._on_late_request)
        self._writing: asyncio.TimerHandle | None = None
        self._address = "" if self.client is None else counted_as(self.client[0])
        self.addresses[self._address] += 1
        self._is_one_too_many = True
        if len(self.connections) > self.limits.max_connections:
            self._refuse(
                503, f"the limit of {self.limits.max_connections} open connections is reached (ADM_MAX_CONNECTIONS)"
            )
        elif self.addresses[self._address] > self.limits.max_connections_per_address:
            self._refuse(
                503,
                f"your address has reached its limit of {self.limits.max_connections_per_address} open connections "
                "(ADM_MAX_CONNECTIONS_PER_ADDRESS)",
            )
        else:
            self._is_one_too_many = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.addresses[self._address] -= 1
        if not self.addresses[self._address]:
            del self.addresses[self._address]
        self.unread.pop(self, None)
        self._reading.cancel()
        if self._writing is not None:
            self._writing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            self._held += data
            self._read_on()
        if len(self._held) > MAX_HELD_BYTES:  # reading was paused, but each request may resume it once
            log.info("refused", detail="too much was sent ahead", client=client_of(self.client))
            self.transport.abort()

    def _read_on(self) -> None:
        """Parse received bytes until MAX_PIPELINED requests wait for their answers; keep the rest."""
        while self._held and not self._is_refused and len(self.pipeline) < MAX_PIPELINED:
            piece = bytes(self._held[:PARSED_BYTES])
            del self._held[:PARSED_BYTES]
            self._parse(piece)
        if self._held:
            self.flow.pause_reading()

    def _parse(self, piece: bytes) -> None:
        part = (self._num_requests, self._arriving)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # not supported: the request is answered, and later bytes are not read
            self._is_refused = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            if not isinstance(error.__context__, StopParsingError):
                self._refuse(400, "the request is not HTTP/1.1")
            return
        if part != (self._num_requests, self._arriving):
            self._num_bytes = 0
            self._restart_timer()
        elif self._arriving is not None:
            self._count(len(piece))

    def _count(self, num_bytes: int) -> None:
        """Count received bytes of the arriving part."""
        self._num_bytes += num_bytes
        if self._arriving == "head" and self._num_bytes > self.limits.max_header_bytes:
            self._refuse_head()
        elif self._arriving == "body":
            self._framing_bytes += num_bytes
            if self._framing_bytes > self.limits.max_header_bytes:
                self._refuse_head()
            elif self._num_bytes > PIECE_BYTES and not self.cycle.response_complete:
                self._num_bytes = 0
                self._restart_timer()

    def _restart_timer(self) -> None:
        self._reading.cancel()
        if self._arriving is not None:
            self._reading = self.loop.call_later(self.limits.client_seconds, self._on_late_request)

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        self._arriving = "head"
        self._num_requests += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.max_header_bytes:
            self._refuse_head()
            raise StopParsingError
        self._arriving, self._framing_bytes = "body", 0
        if (absolute := ABSOLUTE_FORM.match(self.url)) is not None:  # its host counts (RFC 9112, section 3.2.2)
            self.headers[:] = [each for each in self.headers if each[0] != b"host"] + [(b"host", absolute[1])]
        super().on_headers_complete()
        self.cycle.transport = cast(asyncio.Transport, self._answers)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving == "head":  # trailers are dropped
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._arriving = None
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.starts.add(self._address, partial(super()._start_asgi_task, cycle, app))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._read_on()
        if self.transport.is_closing():
            self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()
        self.unread[self] = None
        self._bound_unread()

    def resume_writing(self) -> None:
        self.unread.pop(self, None)
        super().resume_writing()

    def _bound_unread(self) -> None:
        """End the connections with the most unread bytes, while all together exceed the limit."""
        unread_bytes = {each: each.transport.get_write_buffer_size() for each in self.unread}
        total_bytes = sum(unread_bytes.values())
        for each, num_bytes in sorted(unread_bytes.items(), key=lambda entry: entry[1], reverse=True):
            if total_bytes <= self.limits.max_unread_bytes:
                return
            log.warning(
                "unread_answer_dropped",
                client=client_of(each.client),
                unread_bytes=num_bytes,
                all_unread_bytes=total_bytes,
                setting="ADM_MAX_UNREAD_BYTES",
            )
            del self.unread[each]
            each.transport.abort()
            total_bytes -= num_bytes

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_writing()

    def _watch_writing(self) -> None:
        """Check later how much of the answer the client has read."""
        if self._writing is None:
            unsent_bytes = self.transport.get_write_buffer_size()
            self._writing = self.loop.call_later(self.limits.client_seconds, self._on_slow_reader, unsent_bytes)

    def _on_slow_reader(self, unsent_bytes: int) -> None:
        self._writing = None
        left_bytes = self.transport.get_write_buffer_size()
        if (self.flow.write_paused or self.transport.is_closing()) and left_bytes > unsent_bytes - PIECE_BYTES:
            log.info("slow_reader", client=client_of(self.client), unsent_bytes=left_bytes)
            self.transport.abort()
        elif self.flow.write_paused or self.transport.is_closing():
            self._watch_writing()

    def _on_late_request(self) -> None:
        if self._held:  # the client has sent more, which has not been parsed
            self._restart_timer()
        elif self._arriving is None or (self._arriving == "body" and self.cycle.response_complete):
            self.transport.abort()  # an unused connection, or a body that no route waits for
        else:
            seconds = self.limits.client_seconds
            self._refuse(408, f"the request's {self._arriving} did not arrive in {seconds:g} s (ADM_CLIENT_SECONDS)")

    def _refuse_head(self) -> None:
        most = self.limits.max_header_bytes
        self._refuse(431, f"a request's line and headers may have at most {most} bytes (ADM_MAX_HEADER_BYTES)")

    def _refuse(self, status: int, detail: str) -> None:
        """Stop reading. Answer with an error and close, or close after the answers to earlier requests."""
        self._is_refused = True
        self._held.clear()
        self._reading.cancel()
        log.info("refused", status=status, detail=detail, client=client_of(self.client))
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the connection's first request
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False  # closes the connection after this and all earlier answers
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not (cycle.response_started or self.pipeline):
            self._answers.write(self._error(status, detail))
        if self._is_one_too_many:
            self.transport.close()
        else:  # later, because a client that is still sending would lose the answer
            self.transport.write_eof()
            self._reading = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _error(self, status: int, detail: str) -> bytes:
        content = json.dumps(content_of(status, detail, "")).encode()
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": len(content),
            "connection": "close",
            "x-request-id": uuid4().hex,
        }
        if status == 503:
            headers["retry-after"] = RETRY_AFTER_SECONDS
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        lines += [b"%s: %s\r\n" % each for each in self.server_state.default_headers]
        return b"".join([STATUS_LINE[status], *lines, b"\r\n", content])


def limited(limits: Limits) -> type[LimitedProtocol]:
    """The protocol of all connections of a server."""
    return type(
        "LimitedProtocol",
        (LimitedProtocol,),
        {"limits": limits, "unread": {}, "addresses": Counter(), "starts": Starts()},
    )


def counted_as(address: str) -> str:
    """The key under which a connection is counted: the address, or the /64 network for IPv6, which one host may own."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found), 64), strict=False))


def client_of(address: tuple[str, int] | None) -> str:
    """A client's address for logs."""
    return "" if address is None else f"{address[0]}:{address[1]}"
