"""Authenticates callers by the key in the Authorization header, and checks which paths they may call."""

import asyncio
import contextlib
import contextvars
import time
from pathlib import Path
from typing import Annotated, cast

import structlog
from fastapi import Depends, Request, Response
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.callers.keyring import IN_FORCE_SECONDS, Keyring, read_keyring
from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import RefusedError
from jobs.redis import keys
from jobs.redis.replies import is_wrong_type
from jobs.settings import Settings
from service.audit_log import AuditedCall
from service.open_requests import OpenRequests
from service.problems import RETRY_AFTER_SECONDS, on_redis_error, on_refused, problem

log = structlog.get_logger("service.authentication")

REALM = 'Bearer realm="adm"'
OPEN_PATHS = frozenset(
    {"/", "/operator", "/runs", "/docs", "/openapi.json", "/livez", "/readyz", "/healthz"}
)  # paths that need no key
OPEN_BELOW = ("/static/", "/docs/")
OPERATORS_PATHS = ("/v1/workers", "/v1/queue", "/v1/runs")  # and all paths below them
METRICS_PATH = "/metrics"
METRICS_PATIENCE_SECONDS = 1.0  # limit on waiting for Redis, because metrics matter most while it is unavailable
MEMBERS = frozenset({Role.USER, Role.OPERATOR})
NEVER = float("-inf")  # time of a reading that has not been made


class KeyringReader:
    """Gives each request a keyring at most IN_FORCE_SECONDS old, so a change of keys is in force after that time.

    Requests in between cost no round trip. For one event loop. `needed`: a file that is made when the first key is
    seen. While it exists, a Redis without keys must have lost them, so the keyring then accepts nobody.
    """

    def __init__(self, redis: Redis, needed: Path) -> None:
        self._redis, self._needed = redis, needed
        self.last = Keyring({}, exist=needed.exists())  # read last, whatever its age; empty before the first read
        self._version: bytes | None = None  # None: no key was ever made
        self._read_at = NEVER
        self._look: asyncio.Task[None] | None = None

    async def read(self) -> Keyring:
        """The keyring. Raises: RedisError if it cannot be read again; an older keyring is not used."""
        not_before = time.monotonic() - IN_FORCE_SECONDS
        while self._read_at < not_before:  # at most twice, because the second read begins after this call
            if self._look is None:
                self._look = asyncio.create_task(self._read(), context=contextvars.Context())
                # retrieves the exception if all waiting requests were cancelled
                self._look.add_done_callback(lambda look: look.cancelled() or look.exception())
            await asyncio.shield(self._look)  # shared, so that all requests wait for the same read
        return self.last

    async def still_opens(self, caller: Caller) -> bool:
        """Return whether a caller's key is still in force, for calls that last long. Raises: RedisError, as `read`."""
        return (await self.read()).still_opens(caller)

    async def _read(self) -> None:
        began = time.monotonic()
        try:
            (version,) = cast(
                list[bytes | None], await self._redis.mget(keys.API_KEYS_VERSION)
            )  # None for a wrong type
            if version != self._version or self._read_at == NEVER:
                self.last, self._version = self._unless_lost(read_keyring(await self._fields())), version
                log.info("keys_read", in_force=len(self.last), needed=self.last.exist)
            self._read_at = began
        finally:
            self._look = None

    def _unless_lost(self, found: Keyring) -> Keyring:
        if found.exist:
            self._needed.parent.mkdir(parents=True, exist_ok=True)
            self._needed.touch()
        elif self._needed.exists():
            log.error("keys_lost", mend_with="adm keys create", or_serve_anybody_by_removing=str(self._needed))
            return Keyring({}, exist=True)
        return found

    async def _fields(self) -> dict[bytes, bytes] | None:
        try:
            return cast(dict[bytes, bytes], await self._redis.hgetall(keys.API_KEYS))
        except RedisError as error:
            if is_wrong_type(error):
                return None
            raise


class Authentication:
    """Middleware that passes a request with its caller to the route, or answers 400, 401 or 403.

    A path that is not listed here needs a key of a user or an operator, even if it does not exist.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._serves_anonymous = app, settings.serves_anonymous
        self._open_requests = OpenRequests(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        caller = await self._caller(request)
        if isinstance(caller, Response):
            with AuditedCall(scope, send, "") as call:
                await caller(scope, receive, call.send)
            return
        request.state.caller = caller
        receive = while_in_force(request, caller, receive)
        if not caller.id:  # there are no keys, so the caller is unknown
            await self._app(scope, receive, send)
            return
        structlog.contextvars.bind_contextvars(caller=caller.id)
        with AuditedCall(scope, varying(send), caller.id) as call:
            try:
                self._open_requests.add(caller.id, scope)
            except RefusedError as error:
                refused = await on_refused(request, error)
                await refused(scope, receive, call.send)
            else:
                await self._app(scope, receive, call.send)

    async def _caller(self, request: Request) -> Caller | Response:
        reader: KeyringReader = request.app.state.service.keyring
        if request.scope["path"] == METRICS_PATH:
            with contextlib.suppress(RedisError, TimeoutError):
                async with asyncio.timeout(METRICS_PATIENCE_SECONDS):
                    await reader.read()
            return self._admit(request, reader.last)
        try:
            return self._admit(request, await reader.read())
        except RedisError as error:
            return await on_redis_error(request, error)

    def _admit(self, request: Request, keyring: Keyring) -> Caller | Response:
        """Return the request's caller, or the answer that refuses it."""
        if not keyring.exist and self._serves_anonymous:
            return ANONYMOUS
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            return refusal(request, 400, "the request has several Authorization headers", "invalid_request")
        if not given:
            return refusal(request, 401, "a key is needed, as Authorization: Bearer KEY")
        scheme, _, key = given[0].partition(" ")
        caller = keyring.caller_of(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            return refusal(request, 401, "the key is wrong or was revoked", "invalid_token")
        if caller.role not in roles_for(request.scope["path"]):
            detail = f"a key of role {caller.role} may not make this call"
            return refusal(request, 403, detail, "insufficient_scope")
        return caller


def while_in_force(request: Request, caller: Caller, receive: Receive) -> Receive:
    """Receive a body only while its caller's key is in force: a slow body could otherwise outlast a revocation.

    The returned function raises HTTPException: 401, or 503 if Redis is unavailable.
    """
    reader: KeyringReader = request.app.state.service.keyring

    async def receive_in_force() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            try:
                is_in_force = await reader.still_opens(caller)
            except RedisError as error:
                retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
                raise HTTPException(503, "Redis is unavailable", retry) from error
            if not is_in_force:
                raise HTTPException(401, "the key was revoked", challenge("invalid_token"))
        return message

    return receive_in_force


def varying(send: Send) -> Send:
    """Add headers that make an answer private, so that a browser does not show its cache to the next user."""

    async def send_varying(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"vary", b"Authorization")]
        await send(message)

    return send_varying


def refusal(request: Request, status: int, detail: str, error: str = "") -> Response:
    """Return the answer to a request with a wrong key, or with none, in the form of RFC 6750, section 3."""
    return problem(request, status, detail, headers=challenge(error))


def challenge(error: str) -> dict[str, str]:
    """The header WWW-Authenticate of an answer that refuses a key (RFC 6750, section 3)."""
    return {"WWW-Authenticate": f'{REALM}, error="{error}"' if error else REALM}


def is_open(path: str) -> bool:
    """Return whether a path may be called without a key, because it shows no caller's work."""
    return path in OPEN_PATHS or path.startswith(OPEN_BELOW)


def roles_for(path: str) -> frozenset[Role]:
    """The roles that may call a path."""
    if path == METRICS_PATH:
        return frozenset({Role.OPERATOR, Role.METRICS})
    if any(path == each or path.startswith(f"{each}/") for each in OPERATORS_PATHS):
        return frozenset({Role.OPERATOR})
    return MEMBERS


def caller_of(request: Request) -> Caller:
    """The caller of a request, for routes that do without `CallerDep` (`service.state.service_of`)."""
    return cast(Caller, request.state.caller)


async def get_caller(request: Request) -> Caller:  # async: FastAPI sends a plain dependency through the thread pool
    return caller_of(request)


CallerDep = Annotated[Caller, Depends(get_caller)]
