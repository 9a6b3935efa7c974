"""Answers that stay open for minutes: their body is sent outside the middleware and routing that made them.

While a body is sent through middleware and routing, each of their layers keeps its frame, which would be a quarter of
the memory of a thousand open streams. So a stream sends its head through all layers and passes its body to the
outermost one, which sends the body when the others have returned.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

IsGone = Callable[[], Awaitable[bool]]  # whether the client has disconnected
Body = AsyncIterator[bytes]

MakeBody = Callable[[IsGone], Body]

BODIES = "adm.bodies"  # key in a request's scope: the list to which its stream adds the function that makes its body


class Stream(StreamingResponse):
    """A stream of server-sent events; `send_bodies` sends its body."""

    media_type = "text/event-stream"

    def __init__(self, make_body: MakeBody, headers: Mapping[str, str]) -> None:
        super().__init__((), headers=headers)
        self._make_body = make_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        scope[BODIES].append(self._make_body)


async def send_bodies(bodies: list[MakeBody], receive: Receive, send: Send) -> None:
    """Send the bodies of streams. receive: the server's own function, because no more of a request body is counted."""
    client = Request({"type": "http"}, receive)  # a new request: the original keeps all objects of its scope
    for make_body in bodies:
        async for chunk in make_body(client.is_disconnected):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
