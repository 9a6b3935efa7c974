"""/v1/images: OpenAI's images API. Each call is a job like any other, which is cancelled if its client disconnects."""

import asyncio
import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from struct import unpack
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from jobs.contract.caller import Caller
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.job import Job, JobStatus
from jobs.contract.work import evaluations_of
from jobs.queue.events import START, EventKind
from jobs.queue.job_queue import Asked, unknown_job
from service.authentication import CallerDep
from service.openai_images import (
    ImageCall,
    ImageEvent,
    ImageFields,
    ImagesResponse,
    PartialImages,
    StreamedFields,
    TokenUsage,
    body_schema,
    form_fields,
    json_fields,
    size_of,
    understand,
)
from service.problems import RETRY_AFTER_SECONDS, envelope_content, envelopes, with_headers
from service.request_headers import KEY, MAX_WAIT_SECONDS, idempotency_key
from service.routes_events import follow
from service.routes_files import form_of, keep
from service.routes_jobs import at_end, queue_job, refuse_other_than_json
from service.state import Service, ServiceDep
from service.streams import IsGone, Stream
from service.strict_query import StrictQueryRoute

log = structlog.get_logger("service.openai")
router = APIRouter(prefix="/v1/images", tags=["openai"], route_class=StrictQueryRoute)

FORMS = ("/v1/images/edits", "/v1/images/variations")  # paths whose bodies contain pictures
MOST_FIELDS = 40  # of a form; more than the API has
FAILED_STATUS = {JobStatus.FAILED: 500, JobStatus.CANCELLED: 409, JobStatus.EXPIRED: 503}
EVENT_SCHEMA = {
    "itemSchema": {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The images; with `stream`, events", "content": {"text/event-stream": EVENT_SCHEMA}}
    | with_headers("Location", "X-ADM-Ignored-Fields", "Idempotency-Replayed"),
    **envelopes(400, 401, 403, 404, 408, 409, 413, 415, 421, 429, 500, 503),
}


@router.post(
    "/generations",
    response_model=ImagesResponse,
    summary="OpenAI's images.generate: the prompt names a class",
    openapi_extra={
        "parameters": [KEY],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body_schema("generate", StreamedFields)}},
        },
    },
    responses=ANSWERS,
)
async def create_images(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    refuse_other_than_json(request)
    given = json_fields(await request.body())
    fleet = await service.calls.run(service.queue.fleet.read, caller)
    default = service.settings.default_model
    asked = understand("generate", StreamedFields, given, None, fleet.pipelines, default)
    return await make(request, service, caller, asked, "image_generation", idempotency_key(request))


@router.post(
    "/edits",
    response_model=ImagesResponse,
    summary="OpenAI's images.edit: a variation of the picture towards the class that the prompt names",
    openapi_extra={
        "parameters": [KEY],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": body_schema("variation", StreamedFields, "image")}},
        },
    },
    responses=ANSWERS,
)
async def edit_images(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    key = idempotency_key(request)  # first, because a call with an invalid key must not store and charge a picture
    return await make(
        request, service, caller, await understand_form(request, service, caller, StreamedFields), "image_edit", key
    )


@router.post(
    "/variations",
    response_model=ImagesResponse,
    summary="OpenAI's images.create_variation",
    openapi_extra={
        "parameters": [KEY],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": body_schema("variation", ImageFields, "image")}},
        },
    },
    responses=ANSWERS,
)
async def vary_images(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    key = idempotency_key(request)  # first, because a call with an invalid key must not store and charge a picture
    return await make(
        request, service, caller, await understand_form(request, service, caller, ImageFields), "image_variation", key
    )


async def understand_form(request: Request, service: Service, caller: Caller, model: type[ImageFields]) -> ImageCall:
    """Parse a form into a call, and upload its picture. Raises: InvalidRequestError; RefusedError."""
    async with form_of(request, max_files=2, max_fields=MOST_FIELDS) as form:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        given = form_fields([(name, value) for name, value in form.multi_items() if isinstance(value, str)])
        pictures = [value for name, value in files if name in ("image", "image[]")]
        others = {name for name, _ in files} - {"image", "image[]"}
        if "mask" in others:
            raise InvalidRequestError([FieldError("/mask", "is not offered: the whole picture is edited")])
        wrong = [FieldError(f"/{name}", "unknown field") for name in sorted(others)]
        if len(pictures) != 1:
            wrong.append(FieldError("/image", "is required, as one file"))
        if wrong:
            raise InvalidRequestError(wrong)
        fleet = await service.calls.run(service.queue.fleet.read, caller)
        default = service.settings.default_model
        understand("variation", model, given, ["file"], fleet.pipelines, default)  # before the picture is decoded
        await service.calls.run(partial(service.queue.quotas.take_post, caller), caller)  # like an upload
        info = await keep(request, service, caller, pictures[0].file)
    return understand("variation", model, given, [info.id], fleet.pipelines, default)


async def make(
    request: Request, service: Service, caller: Caller, asked: ImageCall, event_prefix: str, key: str | None
) -> Response:
    """Queue a call's job, and answer when it has ended, or stream its events."""
    submitted = await queue_job(service, asked.request, key, caller)
    job, target = submitted.job, Asked(submitted.job.id, caller)
    headers = {"Location": f"{service.settings.root_path}/v1/jobs/{job.id}", "Cache-Control": "no-store"}
    if asked.ignored:
        headers["X-ADM-Ignored-Fields"] = ", ".join(asked.ignored)
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    is_own = key is None  # no other call can return the job, so it is cancelled if this call is given up
    if asked.streams:
        return Stream(lambda is_gone: stream(is_gone, service, job, target, asked, event_prefix, is_own), headers)
    job = await when_ended(request, service, job, target, is_own)
    if job.status is not JobStatus.COMPLETED:
        status, content = failure(job)
        return Response(json.dumps(content), status, headers | {"X-Should-Retry": "false"}, "application/json")
    if asked.fields.response_format == "url":
        origin = f"{request.url.scheme}://{request.headers['host']}"
        data = [{"url": f"{origin}{image.url}"} for image in job.images]
        return Response(json.dumps(head_of(job) | {"data": data}), 200, headers, "application/json")
    # read before the answer's head is sent, so that a failure gets an error status
    first = [await read_png(service, target, job.images[0].index)] if job.images else []
    return StreamingResponse(in_base64(service, job, target, first), 200, headers, "application/json")


async def when_ended(request: Request, service: Service, job: Job, target: Asked, is_own: bool) -> Job:
    """The job when it has ended. Raises: ClientDisconnect; RefusedError if the service stops or the job was deleted."""
    try:
        while not job.status.is_final:
            if service.hub.stopping:
                detail = "the service is being stopped"
                raise RefusedError(ErrorKind.UNAVAILABLE, detail, retry_after_seconds=RETRY_AFTER_SECONDS)
            try:
                job = await at_end(request, service, target, MAX_WAIT_SECONDS)
            except RedisError as error:  # the job continues; an error would make the client post it again
                log.warning("redis_unavailable", error=type(error).__name__)
                await asyncio.sleep(RETRY_AFTER_SECONDS)
                if await request.is_disconnected():
                    raise ClientDisconnect from error
    except BaseException:
        if is_own:
            await give_up(service, target)
        raise
    return job


async def give_up(service: Service, target: Asked) -> None:
    """Cancel a job whose client has disconnected, in a turn of its caller; the job may have ended."""
    cancel = partial(service.queue.cancel, target.job_id, target.caller)
    try:
        await asyncio.shield(service.calls.run_without_limit(cancel, target.caller))
    except (RefusedError, RedisError) as error:
        log.info("not_given_up", job_id=target.job_id, error=str(error))
    else:
        log.info("given_up", job_id=target.job_id)


async def stream(
    is_gone: IsGone, service: Service, job: Job, target: Asked, asked: ImageCall, event_prefix: str, is_own: bool
) -> AsyncIterator[bytes]:
    """A job's previews and images as OpenAI's events; a failed job ends with an error event."""
    assert job.request is not None
    chosen, steps = PartialImages(job.request, asked.partial_images), sum(evaluations_of(job.request).values())
    sent: set[int] = set()  # a second attempt publishes its images again
    status = JobStatus.QUEUED
    try:
        async with aclosing(follow(is_gone, service, target, START)) as events:
            async for each in events:
                if each is None:
                    yield format_sse_event(comment="ping")
                    continue
                data = json.loads(each.data)
                if each.kind is EventKind.PREVIEW and (number := chosen.take(data)) is not None:
                    yield event(f"{event_prefix}.partial_image", data["png"], data["index"], partial_image_index=number)
                elif each.kind is EventKind.IMAGE and data["index"] not in sent:
                    sent.add(data["index"])
                    png = await read_png(service, target, data["index"])
                    encoded = (await run_in_threadpool(b64encode, png)).decode()
                    yield event(f"{event_prefix}.completed", encoded, data["index"], usage=TokenUsage.of(steps))
                elif each.kind.is_final:
                    status = JobStatus(data["status"])
        if status is not JobStatus.COMPLETED:
            found = await service.lookups.ask(target) if status.is_final else job
            yield format_sse_event(data_str=json.dumps(failure(found)[1]), event="error")
    except (RefusedError, RedisError) as error:
        log.warning("stream_cut", error=type(error).__name__)
        yield format_sse_event(data_str=json.dumps(envelope_content(503, str(error), None, None)), event="error")
    finally:
        if is_own and not status.is_final:
            await give_up(service, target)


def event(kind: str, encoded: str, index: int, **more: Any) -> bytes:
    """One event about a picture, whose size is read from its PNG header."""
    width, height = unpack(">II", b64decode(encoded[:32])[16:24])  # PNG, 11.2.2: the header's first two fields
    size = f"{width}x{height}"
    made = ImageEvent(type=kind, b64_json=encoded, created_at=int(time.time()), size=size, index=index, **more)
    return format_sse_event(data_str=made.model_dump_json(exclude_none=True), event=kind)


async def read_png(service: Service, target: Asked, index: int) -> bytes:
    """The bytes of a job's image. Raises: RefusedError."""
    image = await service.calls.run(partial(service.queue.image, target.job_id, index, target.caller), target.caller)
    return await service.store_calls.run(lambda: service.queue.image_bytes(target.job_id, image.record), target.caller)


async def in_base64(service: Service, job: Job, target: Asked, first: list[bytes]) -> AsyncIterator[bytes]:
    """The answer, one image at a time, because 64 of the largest take a hundred megabytes."""
    yield json.dumps(head_of(job)).encode()[:-1] + b', "data": ['
    for number, image in enumerate(job.images):
        if not await service.keyring.still_opens(target.caller):
            raise unknown_job(target.job_id)
        png = first.pop() if first else await read_png(service, target, image.index)
        encoded = await run_in_threadpool(b64encode, png)
        yield (b", " if number else b"") + b'{"b64_json": "' + encoded + b'"}'
    yield b"]}"


def head_of(job: Job) -> dict[str, Any]:
    """The answer without its images."""
    usage = TokenUsage.of(job.usage.steps).model_dump()
    return {"created": int(job.created_at), "output_format": "png", "size": size_of(job.images), "usage": usage}


def failure(job: Job) -> tuple[int, dict[str, Any]]:
    """The status and the error of a job without images."""
    status = FAILED_STATUS.get(job.status, 503)
    if job.error is not None:
        return status, envelope_content(status, job.error.detail, job.error.kind, None)
    detail = f"job {job.id} was {job.status}" if job.status.is_final else f"job {job.id} has not ended"
    return status, envelope_content(status, detail, f"job-{job.status}", None)
