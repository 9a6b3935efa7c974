"""Errors in the form of RFC 9457: every error answer is application/problem+json."""

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs.contract.errors import (
    ErrorKind,
    FieldError,
    InvalidRequestError,
    OverQuotaError,
    RefusedError,
    UnavailableError,
)
from jobs.queue.availability import is_unavailable

log = structlog.get_logger("service")

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
MEDIA_TYPE = "application/problem+json"
ROOT_PATH = "adm.root_path"  # key in a request's scope: ADM_ROOT_PATH
RETRY_AFTER_SECONDS = 2  # while Redis or the store is unavailable; a restart of either takes about that long

OPENAI_PREFIX = "/v1/images/"  # of paths whose errors are in OpenAI's envelope
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
PARAMS = {"/class_label": "prompt", "/images/0": "image", "/file": "image"}  # OpenAI's names of these fields

HTTP_STATUS = {
    ErrorKind.INVALID_REQUEST: 422,
    ErrorKind.OVER_QUOTA: 429,
    ErrorKind.IDEMPOTENCY_MISMATCH: 422,
    ErrorKind.UNKNOWN_JOB: 404,
    ErrorKind.UNKNOWN_GRID: 404,
    ErrorKind.UNKNOWN_MODEL: 404,
    ErrorKind.UNKNOWN_SWEEP: 404,
    ErrorKind.UNKNOWN_IMAGE: 404,
    ErrorKind.UNKNOWN_FILE: 404,
    ErrorKind.UNKNOWN_RUN: 404,
    ErrorKind.UNKNOWN_WORKER: 404,
    ErrorKind.UNKNOWN_CHANGE: 404,
    ErrorKind.IMAGE_NOT_READY: 409,
    ErrorKind.JOB_ENDED: 409,
    ErrorKind.QUEUE_FULL: 503,
    ErrorKind.FILES_FULL: 507,
    ErrorKind.UNAVAILABLE: 503,
}
TITLES = {
    ErrorKind.OVER_QUOTA: "Over the quota",
    ErrorKind.INVALID_REQUEST: "Fields of the request are wrong",
    ErrorKind.IDEMPOTENCY_MISMATCH: "The key was used with another body",
    ErrorKind.UNKNOWN_JOB: "No such job",
    ErrorKind.UNKNOWN_GRID: "No such grid",
    ErrorKind.UNKNOWN_MODEL: "No such model",
    ErrorKind.UNKNOWN_SWEEP: "No sweep of this model",
    ErrorKind.UNKNOWN_IMAGE: "No such image",
    ErrorKind.UNKNOWN_FILE: "No such file",
    ErrorKind.UNKNOWN_RUN: "No such training run",
    ErrorKind.UNKNOWN_WORKER: "No such worker",
    ErrorKind.UNKNOWN_CHANGE: "No such change",
    ErrorKind.IMAGE_NOT_READY: "The image is not stored yet",
    ErrorKind.JOB_ENDED: "The job has ended already",
    ErrorKind.QUEUE_FULL: "Too much work is queued",
    ErrorKind.FILES_FULL: "Too many pictures are kept",
    ErrorKind.UNAVAILABLE: "Not available just now",
}


class FieldProblem(BaseModel):
    pointer: str = Field(description="JSON pointer to the field; empty for the whole body")
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `errors` is present if fields are wrong."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldProblem] | None = None


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    kind: ErrorKind | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem response; without a kind its type is about:blank and its title the status's phrase."""
    if request.scope["path"].startswith(OPENAI_PREFIX):
        return envelope(status, detail, kind, headers, members.get("errors", []))
    content = content_of(status, detail, public_path(request, request.scope["path"]), kind) | members
    return Response(json.dumps(content), status, headers=headers, media_type=MEDIA_TYPE)


def public_path(request: Request, path: str) -> str:
    """A decoded path in the form of a URL, as the service's callers see it: below ADM_ROOT_PATH."""
    root_path: str = request.scope[ROOT_PATH]
    return root_path + quote(path)


def content_of(status: int, detail: str, instance: str, kind: ErrorKind | None = None) -> dict[str, Any]:
    """The members that every problem has."""
    return {
        "type": "about:blank" if kind is None else f"urn:adm:problem:{kind}",
        "title": HTTPStatus(status).phrase if kind is None else TITLES[kind],
        "status": status,
        "detail": detail,
        "instance": instance,
    }


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the first field that is wrong")
    code: str | None


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorDetail


def envelope(
    status: int, detail: str, kind: str | None, headers: Mapping[str, str] | None, errors: Sequence[Mapping[str, str]]
) -> Response:
    """A problem in OpenAI's form, whose clients expect 400 for wrong fields."""
    named = [(PARAMS.get(each["pointer"], each["pointer"][1:].replace("/", ".")), each["detail"]) for each in errors]
    message = "; ".join(f"{name}: {text}" if name else text for name, text in named) or detail
    param = next((name for name, _ in named if name), None)
    status = 400 if status == 422 else status
    content = envelope_content(status, message, kind, param)
    return Response(json.dumps(content), status, headers=headers, media_type="application/json")


def envelope_content(status: int, message: str, kind: str | None, param: str | None) -> dict[str, Any]:
    error_type = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": error_type, "param": param, "code": kind}}


def unavailable(request: Request, detail: str, **members: Any) -> Response:
    """A 503 for a temporary outage."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return problem(request, 503, detail, kind=ErrorKind.UNAVAILABLE, headers=headers, **members)


async def on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)  # Starlette types every handler's argument as Exception
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, OverQuotaError):
        headers |= rate_limit_headers(error)
    members: dict[str, Any] = {}
    if isinstance(error, InvalidRequestError):
        members["errors"] = [{"pointer": each.pointer, "detail": each.detail} for each in error.errors]
    return problem(request, HTTP_STATUS[error.kind], str(error), kind=error.kind, headers=headers, **members)


def rate_limit_headers(error: OverQuotaError) -> dict[str, str]:
    """RateLimit-Policy and RateLimit in the form of draft-ietf-httpapi-ratelimit-headers."""
    name, window, reset = f'"{error.policy}"', error.window_seconds, error.retry_after_seconds
    return {
        "RateLimit-Policy": f"{name};q={error.quota}" + ("" if window is None else f";w={window}"),
        "RateLimit": f"{name};r={error.remaining}" + ("" if reset is None else f";t={max(1, math.ceil(reset))}"),
    }


async def on_unavailable(request: Request, error: Exception) -> Response:
    log.warning("store_unavailable", error=str(error))
    return unavailable(request, "the image store cannot be reached")


async def on_redis_error(request: Request, error: Exception) -> Response:
    if not is_unavailable(error):
        raise error
    log.warning("redis_unavailable", error=type(error).__name__)
    return unavailable(request, "the queue cannot be reached")


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and has_route(path := request.scope["path"].removesuffix("/"), request):
        query = f"?{request.url.query}" if request.url.query else ""
        return Response(status_code=307, headers={"Location": public_path(request, path) + query})
    headers = error.headers if error.status_code != 405 else {"Allow": ", ".join(sorted(allowed_methods(request)))}
    has_no_detail = error.detail == HTTPStatus.NOT_FOUND.phrase
    detail = nothing_here(request) if has_no_detail else error.detail
    return problem(request, error.status_code, detail, headers=headers)


def nothing_here(request: Request) -> str:
    return f"nothing is at this path; {public_path(request, '/docs')} lists the calls"


def has_route(path: str, request: Request) -> bool:
    """Return whether a route has this path, and the request's path differs by a slash at its end.

    Starlette's own redirect names the scheme and the host that it sees, and loses ADM_ROOT_PATH.
    """
    if path == request.scope["path"]:
        return False
    return any(each.matches(dict(request.scope, path=path))[0] is not Match.NONE for each in request.app.routes)


def allowed_methods(request: Request) -> set[str]:
    """Methods of all routes with the request's path; Starlette lists only those of the first one."""
    routes = request.app.routes
    allowed = {
        method
        for method in METHODS
        if any(each.matches(dict(request.scope, method=method))[0] is Match.FULL for each in routes)
    }
    return allowed | {"HEAD"} if "GET" in allowed else allowed


async def on_invalid_parameters(request: Request, error: Exception) -> Response:
    """The answer to wrong query parameters and headers; 404 for a wrong path."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(each["loc"][0] == "path" for each in found):
        return problem(request, 404, nothing_here(request))
    errors = [FieldError("".join(f"/{part}" for part in each["loc"][1:]), each["msg"]) for each in found]
    return await on_refused(request, InvalidRequestError(errors))


def install(app: FastAPI) -> None:
    """Turn every error of a route into a problem. Handlers are async, so that they do not wait for the thread pool."""
    app.add_exception_handler(RefusedError, on_refused)
    app.add_exception_handler(UnavailableError, on_unavailable)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid_parameters)
    app.add_exception_handler(RedisError, on_redis_error)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route's errors."""
    return {status: problem_response(status) for status in statuses}


def envelopes(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of errors in OpenAI's envelope."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem_response(status: int) -> dict[str, Any]:
    """The OpenAPI response of one error."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def with_headers(*names: str) -> dict[str, Any]:
    """The OpenAPI headers of an answer; `service.openapi` has their descriptions."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}
