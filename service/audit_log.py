"""The audit log: one line for each call that may change something, with its caller, if callers have keys."""

from typing import Self

import structlog
from starlette.types import Message, Scope, Send

from service.middleware import SAFE_METHODS

log = structlog.get_logger("audit")


class AuditedCall:
    """Logs one call: a context manager around it, whose `send` takes the place of the server's."""

    def __init__(self, scope: Scope, send: Send, caller: str) -> None:
        """`caller`: the id; "" if the key was missing or wrong."""
        self._scope, self._send, self._caller = scope, send, caller
        self._status, self._location = 500, ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._location = dict(message["headers"]).get(b"location", b"").decode("latin-1")
        await self._send(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Log the call: the route's name and its object, or the path if no route was reached."""
        if self._scope["method"] in SAFE_METHODS:
            return
        route, about = self._scope.get("route"), self._scope.get("path_params") or {}
        several = self._scope.get("state", {}).get("audit_target")  # ids of the objects of a call without a Location
        named = (
            about.get("job_id")
            or about.get("grid_id")
            or about.get("file_id")
            or several
            or self._location.rpartition("/")[2]
        )
        log.info(
            "audit",
            caller=self._caller,
            action=self._scope["method"] if route is None else route.name,
            target=self._scope["path"] if route is None else named,
            outcome="done" if self._status < 400 else "refused",
            status=self._status,
        )
