"""/v1/jobs. A route translates HTTP to a call of the queue and back; it decides nothing.

Calls of the queue and of the image store block, so each of the two has threads of its own, for which callers take
turns. Requests that wait for a job wait on the hub and need no thread.
"""

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request, Response
from opentelemetry import trace
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobs.contract.caller import Caller
from jobs.contract.errors import RefusedError
from jobs.contract.items import JobItems
from jobs.contract.job import Job, JobList
from jobs.contract.request import JobRequest
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.job_queue import Asked, unknown_job
from jobs.queue.submitting import ItemsSubmission
from service.authentication import CallerDep, caller_of
from service.model_response import ModelResponse
from service.problems import documented, with_headers
from service.request_headers import KEY, MAX_WAIT_SECONDS, PREFER, idempotency_key, preferred_wait
from service.state import Service, ServiceDep, service_of
from service.strict_query import StrictQueryRoute
from tracing.propagation import current_traceparent

log = structlog.get_logger("service.jobs")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictQueryRoute)

WAIT = Query(ge=0, description="longest wait for the job's end before the answer, in seconds; above 60 counts as 60")
BODY: dict[str, Any] = {
    "parameters": [KEY, PREFER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("JobRequest", "JobItems")]},
                "examples": {
                    "generate": {"value": {"class_label": "torus", "guidance_scale": 2.5, "steps": 25}},
                    "towards two classes": {"value": {"class_weights": {"torus": 0.5, "cone": 0.5}, "n": 4}},
                    "several jobs": {
                        "value": {"steps": 25, "items": [{"class_label": "torus"}, {"class_label": "cone", "seed": 7}]}
                    },
                },
            }
        },
    },
}


@router.post(
    "",
    status_code=202,
    response_model=Job | JobList,
    summary="Queue a job, or several with `items`",
    openapi_extra=BODY,
    responses={
        202: with_headers("Location", "Retry-After"),
        200: {
            "model": Job | JobList,
            "description": "The job ended within the wait, or the call was replayed under its key",
        }
        | with_headers("Location", "Retry-After", "Idempotency-Replayed", "Preference-Applied"),
        **documented(413, 422, 429, 503),
    },
)
async def create_job(request: Request) -> Response:
    service, caller = service_of(request), caller_of(request)
    refuse_other_than_json(request)
    wait, key = preferred_wait(request), idempotency_key(request)
    body = await request.body()
    if has_items(body):
        return await create_items(request, service, caller, wait, JobItems.parse(body), key)
    submitted = await queue_job(service, JobRequest.parse(body), key, caller)
    job = submitted.job
    headers = {"Location": f"{service.settings.root_path}/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None and not job.status.is_final:
        try:
            job = await at_end(request, service, Asked(job.id, caller), wait)
        except (RedisError, RefusedError) as error:
            # the job is queued or was deleted; an error would make the client post it twice
            log.warning("wait_cut", job_id=job.id, error=type(error).__name__)
    if wait is not None and job.status.is_final:
        headers["Preference-Applied"] = f"wait={wait}"
        return answer(job, 200, headers)
    return answer(job, 200 if submitted.replayed else 202, headers)


async def queue_job(service: Service, body: JobRequest, key: str | None, caller: Caller) -> Submitted:
    """Queue the job of this HTTP request. key: its idempotency key. Raises: RefusedError."""
    request_id = structlog.contextvars.get_contextvars()["request_id"]
    submission = Submission(body, caller, key, request_id, current_traceparent())
    submitted = await service.submissions.ask(submission)
    job = submitted.job
    structlog.contextvars.bind_contextvars(job_id=job.id)
    trace.get_current_span().set_attribute("adm.job.id", job.id)
    count_submitted(service, submitted)
    return submitted


async def create_items(
    request: Request, service: Service, caller: Caller, wait: int | None, body: JobItems, key: str | None
) -> Response:
    """Queue the jobs of a call, and answer at once or when all of them have ended."""
    request_id = structlog.contextvars.get_contextvars()["request_id"]
    submission = ItemsSubmission(body, caller, key, request_id, current_traceparent())
    submitted = await service.long_calls.run(partial(service.queue.submitter.submit_items, submission), caller)
    for each in submitted:
        count_submitted(service, each)
    jobs, replayed = [each.job for each in submitted], any(each.replayed for each in submitted)
    request.state.audit_target = " ".join(each.id for each in jobs)
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    jobs = await all_at_end(request, service, caller, jobs, wait or 0)
    all_ended = all(each.status.is_final for each in jobs)
    if wait is not None and all_ended:
        headers["Preference-Applied"] = f"wait={wait}"
    status = 200 if replayed or (wait is not None and all_ended) else 202
    return ModelResponse(JobList(data=jobs), status, headers)


async def all_at_end(
    request: Request, service: Service, caller: Caller, jobs: Sequence[Job], seconds: float
) -> list[Job]:
    """Return jobs when all have ended or after the given seconds; errors are only logged, because the jobs exist."""
    waited_for, deadline = list(jobs), time.monotonic() + seconds
    try:
        for number, job in enumerate(waited_for):
            left = deadline - time.monotonic()
            if left > 0 and not job.status.is_final:
                waited_for[number] = await at_end(request, service, Asked(job.id, caller), left)
    except (RedisError, RefusedError) as error:
        log.warning("wait_cut", error=type(error).__name__)
    return waited_for


def count_submitted(service: Service, submitted: Submitted) -> None:
    request = submitted.job.request
    if not submitted.replayed and request is not None:
        service.metrics.submitted.labels(request.model, request.priority, request.kind).inc()


@router.get(
    "/{job_id}",
    response_model=Job,
    summary="One job",
    responses={200: with_headers("Retry-After"), **documented(404, 422, 503)},
)
async def get_job(request: Request, job_id: str, wait: Annotated[int | None, WAIT] = None) -> Response:
    service, asked = service_of(request), Asked(job_id, caller_of(request))
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
async def cancel_job(job_id: str, service: ServiceDep, caller: CallerDep) -> Response:
    return answer(await service.calls.run(partial(service.queue.cancel, job_id, caller), caller), 200, {})


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Remove a job and its images, cancelling it if needed",
    responses=documented(404, 503),
)
async def delete_job(job_id: str, service: ServiceDep, caller: CallerDep) -> None:
    await service.store_calls.run(lambda: service.queue.delete(job_id, caller), caller)


def refuse_other_than_json(request: Request) -> None:
    """Refuse other types, because a page of another site can post forms without CORS, but not JSON.

    Raises: HTTPException 415.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")


def has_items(body: bytes) -> bool:
    """Return whether a body is an object with `items`; the first line avoids parsing most bodies twice."""
    if b"items" not in body and b"\\" not in body:
        return False
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):  # the validation reports what is wrong
        return False
    return isinstance(given, dict) and "items" in given


def answer(job: Job, status: int, headers: dict[str, str]) -> Response:
    """A job, with the time after which the client should ask again."""
    if not job.status.is_final:
        eta_seconds = job.queue.eta_seconds if job.queue is not None else None
        headers["Retry-After"] = str(min(MAX_WAIT_SECONDS, max(1, math.ceil(eta_seconds or 1))))
    return ModelResponse(job, status, headers)


async def at_end(request: Request, service: Service, asked: Asked, seconds: float) -> Job:
    """The job when it has ended, or its present state after the given seconds or when the service stops.

    Raises: RefusedError for a job that was deleted, or whose caller's key was revoked; ClientDisconnect.
    """
    deadline = time.monotonic() + seconds
    async with service.hub.listen(asked.job_id) as listener:
        while (left := deadline - time.monotonic()) > 0 and not service.hub.stopping:
            record = await service.records.ask(asked)
            if record is None or record.status.is_final:
                break
            if not await service.keyring.still_opens(asked.caller):
                break
            await listener.wait(left)
            if await request.is_disconnected():
                raise ClientDisconnect
    if not await service.keyring.still_opens(asked.caller):
        raise unknown_job(asked.job_id)
    return await service.lookups.ask(asked)
