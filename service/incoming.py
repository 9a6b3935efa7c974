"""Bounds the bytes of the request bodies that are held at the same time, in shares of their callers."""

from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CancelScope
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from jobs.contract.errors import ErrorKind, RefusedError
from service.problems import RETRY_AFTER_SECONDS

MAX_BODY_BYTES = 65_536
BODY = "adm.body"  # key in a request's scope: its Body


class Incoming:
    """Counts the bytes above MAX_BODY_BYTES of all bodies that are held; for one event loop.

    These bytes are stored in temporary files. A lone caller may hold as many as the limit allows. When they exceed the
    limit, the youngest body of the caller that holds the most is dropped, so a caller that holds less than its share
    loses none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._held: dict[str, dict[Body, None]] = {}  # by caller, the oldest first

    def add(self, body: "Body", num_bytes: int) -> None:
        """Count received bytes of a body. Raises: RefusedError if this body is the one that is dropped."""
        self._held.setdefault(body.caller, {})[body] = None
        body.num_bytes += num_bytes
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            most = max(self._held, key=lambda caller: sum(each.num_bytes for each in self._held[caller]))
            dropped = next(reversed(self._held[most]))
            self.remove(dropped)
            if dropped is body:
                raise self.refusal()
            dropped.drop()

    def remove(self, body: "Body") -> None:
        """Stop counting a body; nothing happens if it is not counted."""
        self._num_bytes -= body.num_bytes
        body.num_bytes = 0
        own = self._held.get(body.caller, {})
        own.pop(body, None)
        if not own:
            self._held.pop(body.caller, None)

    def refusal(self) -> RefusedError:
        return RefusedError(
            ErrorKind.UNAVAILABLE,
            f"bodies of {self._max_bytes} bytes are being received, which is the limit (ADM_MAX_INCOMING_BYTES), and "
            "you send more of these bytes than any other caller",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


class Body:
    """One request's body. `receive` receives it; a route that accepts large bodies holds it within `held`."""

    def __init__(self, incoming: Incoming, scope: Scope, receive: Receive, max_bytes: int) -> None:
        self._incoming, self._scope, self._receive, self._max_bytes = incoming, scope, receive, max_bytes
        self._received = 0
        self._holding: CancelScope | None = None
        self.num_bytes = 0  # above MAX_BODY_BYTES, while they are held
        self.caller = ""  # its id, once bytes are counted

    async def receive(self) -> Message:
        """Receive the next part.

        Raises: HTTPException for a body that becomes too large, because a chunked one has no declared length;
        RefusedError if the bodies that are held are too large together.
        """
        message = await self._receive()
        before, self._received = self._received, self._received + len(message.get("body", b""))
        if self._received > self._max_bytes:
            raise HTTPException(413, too_large(self._max_bytes))
        if excess := max(self._received, MAX_BODY_BYTES) - max(before, MAX_BODY_BYTES):
            self.caller = self._scope["state"]["caller"].id
            self._incoming.add(self, excess)
        return message

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the received bytes within the block, which is cancelled if they are dropped.

        Raises: RefusedError if they were dropped.
        """
        try:
            with CancelScope() as self._holding:
                yield
        finally:
            self._incoming.remove(self)
        if self._holding.cancelled_caught:
            raise self._incoming.refusal()

    def drop(self) -> None:
        """Cancel the block that holds the bytes."""
        assert self._holding is not None  # only routes that hold a body may take a large one
        self._holding.cancel()


def body_of(request: Request) -> Body:
    """The body of a request, for the route that takes it."""
    body: Body = request.scope[BODY]
    return body


def too_large(max_bytes: int) -> str:
    return f"a body may have at most {max_bytes} bytes"
