"""Completes FastAPI's OpenAPI document: bodies that routes read themselves, errors, headers, events."""

from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from jobs.contract.changes import ChangeRequest
from jobs.contract.grids import GridRequest
from jobs.contract.items import JobItems
from jobs.contract.job import ImageView, Job, JobStatus, Progress
from jobs.contract.request import JobRequest
from jobs.queue.events import EventKind
from service.authentication import is_open
from service.problems import OPENAI_PREFIX, OpenAIError, Problem, problem_response, with_headers

UNSAFE = frozenset({"post", "put", "patch", "delete"})
ANYWHERE = (400, 421, 431)  # answers of the server itself, and to a foreign Host
TO_QUERIES = (422,)  # answers to unknown query parameters (`service.strict_query`)
TO_STRANGERS = (401, 403)
KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key that `adm keys create` made. Once a key exists, every caller needs one.",
}
TO_BODIES = (408, 413, 415)
HEADERS = {
    "X-Request-ID": "the request's own id, or a generated one; log lines have it",
    "Retry-After": "seconds",
    "RateLimit": "the exceeded quota, what is left of it, and the seconds until the call may be repeated",
    "RateLimit-Policy": "that quota, and its window in seconds",
    "Location": "path of the created object",
    "ETag": "identifies the content",
    "Vary": "the request's headers on which the answer depends",
    "Cache-Control": "how long the answer may be cached",
    "Idempotency-Replayed": "`true`: an earlier call with the same key made the job",
    "Preference-Applied": "`wait=N`: the answer was delayed until the job ended",
    "X-ADM-Ignored-Fields": "given OpenAI fields that have no effect here",
    "Content-Disposition": "a name for the file",
    "WWW-Authenticate": "how to send a key, and the error of the given one (RFC 6750)",
    "Accept-Encoding": "`identity`: a body must not be compressed",
}


class OfJob(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="the job's")


class StateData(OfJob):
    """Data of `queued` and `started`."""

    status: JobStatus
    attempt: int | None = None


class ProgressData(Progress, OfJob):
    """Data of `progress`."""


class PreviewData(OfJob):
    """Data of `preview`: a prediction of the clean image; previews are not replayed."""

    index: int
    stage: str
    step: int
    steps: int
    png: str = Field(description="base64")


class ImageData(ImageView, OfJob):
    """Data of `image`: an image that can now be fetched."""


class DeletedData(OfJob):
    """Data of `cancelled` for a job that was deleted; the stream then ends."""

    status: Literal[JobStatus.CANCELLED]
    deleted: Literal[True]


EVENT_DATA: dict[EventKind, tuple[type[BaseModel], ...]] = {
    EventKind.QUEUED: (StateData,),
    EventKind.STARTED: (StateData,),
    EventKind.PROGRESS: (ProgressData,),
    EventKind.PREVIEW: (PreviewData,),
    EventKind.IMAGE: (ImageData,),
    EventKind.COMPLETED: (Job,),
    EventKind.FAILED: (Job,),
    EventKind.CANCELLED: (Job, DeletedData),
    EventKind.EXPIRED: (Job,),
}


def reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def event_schema(kind: EventKind) -> dict[str, Any]:
    """The schema of one kind of event in a stream; its data are JSON in a string."""
    models = [reference(each) for each in EVENT_DATA[kind]]
    content = models[0] if len(models) == 1 else {"oneOf": models}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": kind}, "id": {"type": "string"}, "data": data},
    }


EVENT_STREAM = {"itemSchema": {"oneOf": [event_schema(each) for each in EventKind]}}  # OpenAPI 3.2's form of streams


def complete(document: dict[str, Any]) -> None:
    """Complete and correct FastAPI's document."""
    models = dict.fromkeys((JobRequest, JobItems, GridRequest, ChangeRequest), "validation") | dict.fromkeys(
        (Problem, OpenAIError, *(model for each in EVENT_DATA.values() for model in each)), "serialization"
    )
    _, definitions = models_json_schema(list(models.items()), ref_template="#/components/schemas/{model}")  # type: ignore[arg-type] # a dict's values are no literals
    components = document["components"]
    components["schemas"] |= definitions["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which this service does not send
        components["schemas"].pop(name, None)
    components["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()
    }
    components["responses"] = {
        str(status): problem_response(status) for status in {*ANYWHERE, *TO_QUERIES, *TO_BODIES, *TO_STRANGERS}
    }
    components["securitySchemes"] = {"key": KEY}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["security"] = [] if is_open(path) else [{"key": []}, {}]
            is_strict = path.startswith("/v1/") and not path.startswith(OPENAI_PREFIX)  # whose envelope has 400
            complete_operation(method, operation, TO_QUERIES if is_strict else ())
    for response in components["responses"].values():
        add_headers(response, "X-Request-ID")
    add_headers(components["responses"]["415"], "Accept-Encoding")
    for status in TO_STRANGERS:
        add_headers(components["responses"][str(status)], "WWW-Authenticate")


def complete_operation(method: str, operation: dict[str, Any], queries: tuple[int, ...]) -> None:
    responses = operation["responses"]
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]  # FastAPI adds it for every route with a parameter
    bodies, pages = (TO_BODIES if "requestBody" in operation else ()), ((403,) if method in UNSAFE else ())
    for status in (*ANYWHERE, *queries, *bodies, *pages, *(TO_STRANGERS if operation["security"] else ())):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    for status, response in responses.items():
        if "$ref" not in response:
            add_headers(response, "X-Request-ID")
            if status in (str(HTTPStatus.SERVICE_UNAVAILABLE), str(HTTPStatus.TOO_MANY_REQUESTS)):
                add_headers(response, "Retry-After")
            if status == str(HTTPStatus.TOO_MANY_REQUESTS):
                add_headers(response, "RateLimit", "RateLimit-Policy")


def add_headers(response: dict[str, Any], *names: str) -> None:
    response.setdefault("headers", {}).update(with_headers(*names)["headers"])


def install(app: FastAPI) -> None:
    """Serve the completed document, which is made once."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            complete(plain())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own documented way to extend the document
