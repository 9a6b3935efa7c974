"""/v1/jobs. A route translates HTTP to a call of the queue and back; it decides nothing.

The queue's client blocks, so its calls run in the thread pool, and those of the image store in threads of their own;
what waits for a job, waits on the hub and holds no thread.
"""

import math
import re
import time
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from opentelemetry import trace
from pydantic import BeforeValidator, WithJsonSchema
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobs.callers.caller import Caller
from jobs.contract.errors import FieldError, InvalidRequestError, RefusedError
from jobs.contract.job import Job, JobPage, JobStatus
from jobs.contract.request import JobRequest
from jobs.job_queue import Asked, unknown_job
from jobs.queue.rubbish import INDEX_MEMBER
from jobs.queue.submitting import Submission, Submitted
from service.authentication import CallerDep
from service.conditional import answer_png
from service.problems import documented, with_headers
from service.state import Service, ServiceDep
from tracing.propagation import current_traceparent

log = structlog.get_logger("service.jobs")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

PAGE_LIMIT = 20
MAX_WAIT_SECONDS = 60
MAX_KEY_LENGTH = 255
PREFERENCE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')  # a comma within quotes separates nothing
PREFERRED_WAIT = re.compile(r'\s*wait\s*=\s*("?)(\d{1,99})\1\s*(?:;.*)?', re.IGNORECASE)
WAIT = Query(ge=0, description="seconds to hold the answer until the job ends; above 60 counts as 60")
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "examples": {
                    "generate": {"value": {"class_label": "torus", "guidance_scale": 2.5, "steps": 25}},
                    "towards two classes": {"value": {"class_weights": {"torus": 0.5, "cone": 0.5}, "n": 4}},
                },
            }
        },
    }
}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The PNG", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
    | with_headers("ETag", "Cache-Control"),
    304: {"description": "As the caller holds it"} | with_headers("ETag", "Cache-Control"),
}


def unless_empty(default: int | None, schema: dict[str, Any]) -> tuple[BeforeValidator, WithJsonSchema]:
    """A parameter of a schema that a form may leave empty, which counts as not given."""
    described = WithJsonSchema({"anyOf": [schema, {"const": ""}], "default": default})
    return BeforeValidator(lambda value: default if value == "" else value), described


STATUS = unless_empty(None, {"enum": list(JobStatus)})
LIMIT = unless_empty(PAGE_LIMIT, {"type": "integer", "minimum": 1, "maximum": 100})
AFTER = unless_empty(None, {"type": "string", "pattern": f"^{INDEX_MEMBER.pattern}$"})
KEY = Header(
    description="same key and body: the same job",
    json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_LENGTH},
)


async def preferred_wait(  # async: FastAPI sends a plain dependency through the thread pool
    request: Request,
    prefer: Annotated[str | None, Header(description="`wait=N`: answer when the job has ended, or after N s")] = None,
) -> int | None:
    """Seconds of RFC 7240's `wait`, 60 at most; a preference that makes no sense is no error.

    `prefer` is there for the document alone: it holds one of the header's lines, and there may be many.
    """
    for preference in PREFERENCE.findall(", ".join(request.headers.getlist("prefer"))):
        if found := PREFERRED_WAIT.fullmatch(preference):
            return min(int(found[2]), MAX_WAIT_SECONDS)
    return None


@router.post(
    "",
    status_code=202,
    response_model=Job,
    summary="Queue a job",
    openapi_extra=BODY,
    responses={
        202: with_headers("Location", "Retry-After"),
        200: {"model": Job, "description": "Ended within the wait, or replayed under its key"}
        | with_headers("Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied"),
        **documented(413, 422, 429, 503),
    },
)
async def create_job(
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    wait: Annotated[int | None, Depends(preferred_wait)],
    idempotency_key: Annotated[str | None, KEY] = None,
) -> Response:
    refuse_other_than_json(request)
    submitted = await queue_job(service, JobRequest.parse(await request.body()), idempotency_key, caller)
    job = submitted.job
    headers = {"Location": f"{service.settings.root_path}/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None and not job.status.is_final:
        try:
            job = await at_end(request, service, Asked(job.id, caller), wait)
        except (RedisError, RefusedError) as error:
            # it is queued all the same, or somebody deleted it; an error would have it posted twice
            log.warning("wait_cut", job_id=job.id, error=type(error).__name__)
    if wait is not None and job.status.is_final:
        headers["Preference-Applied"] = f"wait={wait}"
        return answer(job, 200, headers)
    return answer(job, 200 if submitted.replayed else 202, headers)


async def queue_job(service: Service, body: JobRequest, idempotency_key: str | None, caller: Caller) -> Submitted:
    """Queue the job of a request that is being answered. Raises: RefusedError."""
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError([FieldError("/Idempotency-Key", f"must have 1 to {MAX_KEY_LENGTH} characters")])
    request_id = structlog.contextvars.get_contextvars()["request_id"]
    submission = Submission(body, caller, idempotency_key, request_id, current_traceparent())
    submitted = await service.submissions.ask(submission)
    job = submitted.job
    structlog.contextvars.bind_contextvars(job_id=job.id)
    trace.get_current_span().set_attribute("adm.job.id", job.id)
    if not submitted.replayed and job.request is not None:
        service.metrics.submitted.labels(job.request.model, job.request.priority, job.request.kind).inc()
    return submitted


@router.get("", summary="Jobs, newest first", responses=documented(422, 503))
def list_jobs(
    service: ServiceDep,
    caller: CallerDep,
    status: Annotated[JobStatus | None, *STATUS] = None,
    limit: Annotated[int, Query(ge=1, le=100), *LIMIT] = PAGE_LIMIT,
    after: Annotated[str | None, Query(description="`next` of the page before"), *AFTER] = None,
) -> JobPage:
    return service.queue.page(status, limit, after, caller)


@router.get(
    "/{job_id}",
    response_model=Job,
    summary="One job",
    responses={200: with_headers("Retry-After"), **documented(404, 422, 503)},
)
async def get_job(
    request: Request,
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    wait: Annotated[int | None, WAIT] = None,
) -> Response:
    asked = Asked(job_id, caller)
    job = await service.lookups.ask(asked)
    if wait and not job.status.is_final:
        job = await at_end(request, service, asked, min(wait, MAX_WAIT_SECONDS))
    return answer(job, 200, {})


@router.post(
    "/{job_id}/cancel",
    response_model=Job,
    summary="Cancel a job",
    responses={200: with_headers("Retry-After"), **documented(404, 409, 503)},
)
def cancel_job(job_id: str, service: ServiceDep, caller: CallerDep) -> Response:
    return answer(service.queue.cancel(job_id, caller), 200, {})


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Remove a job and its images, cancelling it if needed",
    responses=documented(404, 503),
)
async def delete_job(job_id: str, service: ServiceDep, caller: CallerDep) -> None:
    await service.store_calls.run(lambda: service.queue.delete(job_id, caller))


@router.get(
    "/{job_id}/images/{index}",
    summary="An image, as soon as its event was sent",
    response_class=Response,
    responses={**PNG, **documented(404, 409, 503)},
)
async def get_image(
    job_id: str,
    index: int,
    service: ServiceDep,
    caller: CallerDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    image = await run_in_threadpool(service.queue.image, job_id, index, caller)
    return await answer_png(
        lambda: service.store_calls.run(lambda: service.queue.image_bytes(job_id, image.record)),
        image.record.sha256,
        image.kept_seconds,
        if_none_match,
    )


def refuse_other_than_json(request: Request) -> None:
    """Raises: HTTPException 415; a form of another site's page, which needs no leave, is never JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")


def answer(job: Job, status: int, headers: dict[str, str]) -> Response:
    """A job, with the time after which it is worth asking again."""
    if not job.status.is_final:
        eta_seconds = job.queue.eta_seconds if job.queue is not None else None
        headers["Retry-After"] = str(min(MAX_WAIT_SECONDS, max(1, math.ceil(eta_seconds or 1))))
    return Response(job.model_dump_json(), status, headers, media_type="application/json")


async def at_end(request: Request, service: Service, asked: Asked, seconds: float) -> Job:
    """The job when it has ended; as it is after so long, or when the service stops.

    Raises: RefusedError for a job that was deleted, or whose caller's key has been revoked; ClientDisconnect when
    nobody waits any more.
    """
    deadline = time.monotonic() + seconds
    async with service.hub.listen(asked.job_id) as listener:
        while (left := deadline - time.monotonic()) > 0 and not service.hub.stopping:
            record = await service.records.ask(asked)
            if record is None or record.status.is_final:
                break
            if not (await service.keyring.read()).still_opens(asked.caller):
                break
            await listener.wait(left)
            if await request.is_disconnected():
                raise ClientDisconnect
    if not (await service.keyring.read()).still_opens(asked.caller):
        raise unknown_job(asked.job_id)
    return await service.lookups.ask(asked)
