"""Middleware for every request: id, log line, metrics, security headers, refusals, and a 500 for other exceptions."""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.contract.caller import KEY
from jobs.settings import Settings
from service.hosts import Hosts, is_same_origin
from service.incoming import BODY, MAX_BODY_BYTES, Body, Incoming, too_large
from service.metrics import Metrics
from service.open_requests import AT_END
from service.problems import METHODS, ROOT_PATH, problem, unavailable
from service.protocol import client_of
from service.request_spans import NOT_RECORDED, RequestSpans, describe
from service.streams import BODIES, MakeBody, send_bodies
from tracing.propagation import current_traceparent, trace_id_of

log = structlog.get_logger("service")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})  # called every few seconds, so not logged
# logged at debug if they succeed
POLLED_ROUTES = frozenset(
    {"/v1/models", "/v1/workers", "/v1/queue", "/v1/jobs", "/v1/jobs/{job_id}", "/v1/grids/{grid_id}"}
)
PAGE_FILES = ("/static/", "/docs/")  # a load of the page requests dozens, so they are logged like polls
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CLIENT_GONE = 499  # nginx' status for a client that disconnected before its answer; it is only logged
# keys of a scope that the log, metrics and errors need
RECORDED = ("path", ROOT_PATH, "route", "path_params", "client")
# Headers of which only the first one would count, while a proxy before the service may use the last one.
# `service.authentication` refuses several Authorization headers.
SINGLE_HEADERS = {
    each.lower().encode(): each
    for each in ("Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Idempotency-Key", "Last-Event-ID")
}
SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),  # images too may only be embedded by the service's own page
)


def route_of(scope: Scope) -> str:
    """The template of the route that a request matched."""
    return getattr(scope.get("route"), "path", "unmatched")


def shown_method(method: str) -> str:
    """The method for metrics and spans; unknown ones share one label, so that clients cannot add labels."""
    return method if method in METHODS else "other"


def new_id() -> str:
    """A request's id. Unlike `uuid4`, it makes no system call, during which other threads would run first."""
    return f"{random.getrandbits(128):032x}"


def without_body(send: Send) -> Send:
    """Send only an answer's head and end it, because a stream would not end by itself."""
    ended = False

    async def send_head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b""})

    return send_head


class Requests:
    """The middleware around all others except `CrossOrigin`. It is plain ASGI, so that streams pass unchanged."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        settings: Settings,
        spans: RequestSpans,
        body_limits: Mapping[str, int],
    ) -> None:
        """`body_limits`: bytes by path, for paths whose limit is not MAX_BODY_BYTES."""
        self._app, self._metrics, self._spans, self._body_limits = app, metrics, spans, body_limits
        self._hosts, self._root_path = Hosts(settings), settings.root_path
        self._origins = frozenset(settings.cors_origins)
        self._incoming = Incoming(settings.max_incoming_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as at_end:
            await self._answer(dict(scope) | {AT_END: at_end}, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        bodies: list[MakeBody] = []
        scope = dict(scope, path=self._inner_path(scope["path"])) | {BODIES: bodies, ROOT_PATH: self._root_path}
        method = scope["method"]
        if method == "HEAD":  # RFC 9110, 9.3.2: answered like GET, without the body
            scope, send = dict(scope, method="GET"), without_body(send)
        headers = Headers(scope=scope)
        given, traceparent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        request_id = given if REQUEST_ID.fullmatch(given) and not KEY.search(given) else new_id()
        began, status, is_recorded = time.perf_counter(), 0, scope["path"] not in QUIET_ROUTES

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                added = [each for each in SECURITY_HEADERS if each[0] not in present]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *added]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)  # the server clears the context before
        self._metrics.in_progress.inc()
        with self._spans.span(shown_method(method), traceparent) if is_recorded else NOT_RECORDED as span:
            if trace_id := trace_id_of(current_traceparent()):
                structlog.contextvars.bind_contextvars(trace_id=trace_id)
            try:
                if (refusal := self._refusal(Request(scope))) is not None:
                    await refusal(scope, receive, send_with_headers)
                else:
                    scope[BODY] = body = Body(self._incoming, scope, receive, self._max_bytes(scope))
                    await self._app(scope, body.receive, send_with_headers)
                    scope = {name: scope[name] for name in RECORDED if name in scope}  # releases routing's objects
                    await send_bodies(bodies, receive, send_with_headers)
            except ClientDisconnect:
                status = status or CLIENT_GONE
            except asyncio.CancelledError:
                if status:
                    raise
                await unavailable(Request(scope), "the service is being stopped")(scope, receive, send_with_headers)
            except Exception:
                log.exception("failed")
                if status:
                    raise  # the answer has started, so the server must close the connection
                answer = problem(
                    Request(scope), 500, "the service failed; its log has the error under this request's id"
                )
                await answer(scope, receive, send_with_headers)
            finally:
                self._metrics.in_progress.dec()
                self._record(scope, method, status, time.perf_counter() - began)
                describe(span, shown_method(method), route_of(scope), status)

    def _inner_path(self, path: str) -> str:
        """The path below ADM_ROOT_PATH; the proxy may forward the prefix or remove it."""
        inner = path.removeprefix(self._root_path)
        return inner if inner.startswith("/") else path

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that must not reach a route; None if it may."""
        headers = request.headers
        names = [name for name, _ in request.scope["headers"] if name in SINGLE_HEADERS]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            return problem(request, 400, f"the request has several {SINGLE_HEADERS[repeated]} headers")
        host = headers.get("host", "")
        if host not in self._hosts:
            known = ", ".join(sorted(self._hosts.names))
            return problem(request, 421, f"this Host is not one of the service's: {known} (ADM_HOSTS adds names)")
        if request.method not in SAFE_METHODS:
            # without keys, a page of another site could act through its visitor's browser
            origin = headers.get("origin")
            if origin not in self._origins and (
                headers.get("sec-fetch-site") in ("cross-site", "same-site")
                or (origin is not None and not is_same_origin(origin, host))
            ):
                return problem(request, 403, "pages of other sites may not call this service")
        if any(each.lower() != "identity" for each in headers.getlist("content-encoding")):
            return problem(request, 415, "a body must not be compressed", headers={"Accept-Encoding": "identity"})
        coding = headers.get("transfer-encoding", "chunked")
        if coding.lower() != "chunked":  # RFC 9112, 6.1
            return problem(request, 501, f"the transfer coding {coding!r} is not understood; use chunked")
        max_bytes = self._max_bytes(request.scope)
        if int(headers.get("content-length") or 0) > max_bytes:
            return problem(request, 413, too_large(max_bytes))
        return None

    def _max_bytes(self, scope: Scope) -> int:
        return self._body_limits.get(scope["path"], MAX_BODY_BYTES)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route, label = route_of(scope), shown_method(method)
        self._metrics.requests.labels(label, route, status).inc()
        self._metrics.seconds.labels(label, route).observe(seconds)
        if route not in QUIET_ROUTES:
            job = {"job_id": scope["path_params"]["job_id"]} if "job_id" in scope.get("path_params", {}) else {}
            is_polled = route in POLLED_ROUTES or scope["path"].startswith(PAGE_FILES)
            is_routine = is_polled and method in SAFE_METHODS and 200 <= status < 400
            write = log.debug if is_routine else log.info
            write(
                "request",
                method=method,
                path=scope["path"],
                status=status,
                seconds=round(seconds, 4),
                client=client_of(scope["client"]),
                **job,
            )
