"""/v1/jobs. A route translates HTTP to a call of the queue and back; it decides nothing.

The queue's client blocks, so its calls run in the thread pool; what waits, waits on the hub and holds no thread.
"""

import math
import re
import time
from typing import Annotated, Any, cast

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs import books
from jobs.errors import FieldError, InvalidRequestError
from jobs.job import Job, JobPage, JobStatus
from jobs.record import Record
from jobs.request import JobRequest
from service.problems import documented
from service.state import Service, ServiceDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_WAIT_SECONDS = 60
MAX_KEY_LENGTH = 255
PREFERRED_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?=$|[,;])", re.IGNORECASE)
WAIT = Query(ge=0, description="seconds to hold the answer until the job ends; above 60 counts as 60")
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "example": {"class_label": "torus", "guidance_scale": 2.5, "steps": 25},
            }
        },
    }
}
LOCATION = {"Location": {"description": "/v1/jobs/{id}", "schema": {"type": "string"}}}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The PNG", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "As the caller holds it"},
}


@router.post(
    "",
    status_code=202,
    response_model=Job,
    summary="Queue a job",
    openapi_extra=BODY,
    responses={
        202: {"headers": LOCATION},
        200: {"model": Job, "description": "Ended within the wait, or replayed under its key", "headers": LOCATION},
        **documented(413, 422, 503),
    },
)
async def create_job(
    request: Request,
    service: ServiceDep,
    prefer: Annotated[str | None, Header(description="`wait=N`: answer when the job has ended, or after N s")] = None,
    idempotency_key: Annotated[str | None, Header(description="same key and body: the same job")] = None,
) -> Response:
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError([FieldError("/Idempotency-Key", f"must have 1 to {MAX_KEY_LENGTH} characters")])
    body = JobRequest.parse(await request.body())
    submitted = await run_in_threadpool(service.queue.submit, body, idempotency_key)
    job = submitted.job
    structlog.contextvars.bind_contextvars(job_id=job.id)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    elif job.request is not None:
        service.metrics.submitted.labels(job.request.model, job.request.priority).inc()
    wait = preferred_wait(prefer)
    if wait is not None and not job.status.is_final:
        await wait_for_end(service, job.id, wait)
        job = await run_in_threadpool(service.queue.get, job.id)
    if wait is not None and job.status.is_final:
        headers["Preference-Applied"] = f"wait={wait}"
        return answer(job, 200, headers)
    return answer(job, 200 if submitted.replayed else 202, headers)


@router.get("", summary="Jobs, newest first", responses=documented(422, 503))
def list_jobs(
    service: ServiceDep,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> JobPage:
    return service.queue.page(status, limit, after)


@router.get("/{job_id}", response_model=Job, summary="One job", responses=documented(404, 422, 503))
async def get_job(job_id: str, service: ServiceDep, wait: Annotated[int | None, WAIT] = None) -> Response:
    job = await run_in_threadpool(service.queue.get, job_id)
    if wait and not job.status.is_final:
        await wait_for_end(service, job_id, min(wait, MAX_WAIT_SECONDS))
        job = await run_in_threadpool(service.queue.get, job_id)
    return answer(job, 200, {})


@router.post("/{job_id}/cancel", response_model=Job, summary="Cancel a job", responses=documented(404, 409, 503))
def cancel_job(job_id: str, service: ServiceDep) -> Response:
    return answer(service.queue.cancel(job_id), 200, {})


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Remove a job and its images, cancelling it if needed",
    responses=documented(404, 503),
)
def delete_job(job_id: str, service: ServiceDep) -> None:
    service.queue.delete(job_id)


@router.get(
    "/{job_id}/images/{index}",
    summary="An image, as soon as its event was sent",
    response_class=Response,
    responses={**PNG, **documented(404, 409, 503)},
)
def get_image(
    job_id: str, index: int, service: ServiceDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    image = service.queue.image(job_id, index)
    seconds = max(0, int(image.kept_until - time.time()))
    etag = f'"{image.record.sha256}"'
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={seconds}, immutable"}
    if if_none_match is not None and matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(service.queue.image_bytes(job_id, image.record), headers=headers, media_type="image/png")


def answer(job: Job, status: int, headers: dict[str, str]) -> Response:
    """A job, with the time after which it is worth asking again."""
    if not job.status.is_final:
        eta_seconds = job.queue.eta_seconds if job.queue is not None else None
        headers["Retry-After"] = str(min(MAX_WAIT_SECONDS, max(1, math.ceil(eta_seconds or 1))))
    return Response(job.model_dump_json(), status, headers, media_type="application/json")


async def wait_for_end(service: Service, job_id: str, seconds: float) -> None:
    """Return when the job has ended or is gone, or after so long."""
    deadline = time.monotonic() + seconds
    async with service.hub.listen(job_id) as listener:
        while (left := deadline - time.monotonic()) > 0:
            record = await read_record(service, job_id)
            if record is None or record.status.is_final:
                return
            await listener.wait(left)


async def read_record(service: Service, job_id: str) -> Record | None:
    fields = cast(dict[bytes, bytes], await service.async_redis.hgetall(books.job_key(job_id)))
    return Record(job_id, fields) if fields else None


def preferred_wait(prefer: str | None) -> int | None:
    """Seconds of RFC 7240's `wait`, 60 at most; a preference that makes no sense is no error."""
    found = PREFERRED_WAIT.search(prefer or "")
    return None if found is None else min(int(found[1]), MAX_WAIT_SECONDS)


def matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with any of a list."""
    given = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in given or etag in given
