"""/v1/jobs/{id}/events: a job's events as they come, and those that were missed."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Response
from redis.exceptions import RedisError
from sse_starlette import EventSourceResponse, ServerSentEvent

from jobs.errors import ErrorKind, RefusedError
from jobs.events import START, Event, EventKind, Place
from service.hub import RECHECK_SECONDS
from service.openapi import EVENT_STREAM
from service.problems import documented
from service.state import Service, ServiceDep

log = structlog.get_logger("service.events")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
RECONNECT_MS = 1000
PING_SECONDS = 15
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": EVENT_STREAM}},
    204: {"description": "The job has ended and nothing was missed; do not reconnect"},
}


@router.get(
    "/{job_id}/events",
    summary="Events of a job; the stream closes after the last",
    response_class=EventSourceResponse,
    responses={**STREAM, **documented(404, 503)},
)
async def stream_events(
    job_id: str, service: ServiceDep, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    record = await service.records.ask(job_id)
    if record is None:
        raise RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id[:128]!r}")
    last_id = last_event_id if last_event_id is not None and EVENT_ID.fullmatch(last_event_id) else START
    if record.status.is_final and not await service.events.ask(Place(job_id, last_id)):
        return Response(status_code=204)  # all else would make an EventSource come back for ever
    return EventSourceResponse(
        events(service, job_id, last_id), ping=PING_SECONDS, headers={"Cache-Control": "no-store"}
    )


async def events(service: Service, job_id: str, last_id: str) -> AsyncIterator[ServerSentEvent]:
    """Events behind one, up to and with the job's last; previews as they come, under the id of the event before."""
    yield ServerSentEvent(comment="open", retry=RECONNECT_MS)
    try:
        async with service.hub.listen(job_id) as listener:
            while True:
                found = await service.events.ask(Place(job_id, last_id))
                for each in found:
                    last_id = each.id
                    yield ServerSentEvent(await data_of(service, job_id, each), event=each.kind, id=each.id)
                    if each.kind.is_final:
                        return
                for data in listener.previews():
                    yield ServerSentEvent(data, event=EventKind.PREVIEW, id=None if last_id == START else last_id)
                if not found and await service.records.ask(job_id) is None:
                    gone = json.dumps({"id": job_id, "status": EventKind.CANCELLED, "deleted": True})
                    yield ServerSentEvent(gone, event=EventKind.CANCELLED, id=last_id)
                    return
                await listener.wait(RECHECK_SECONDS)
    except RedisError as error:
        # the stream has begun, so no status can tell; the client comes back with the last id it saw
        log.warning("redis_away", error=type(error).__name__)


async def data_of(service: Service, job_id: str, event: Event) -> str:
    """What was stored with it; with the last event comes the whole job, which changes no more."""
    if not event.kind.is_final:
        return event.data
    try:
        job = await service.lookups.ask(job_id)
    except RefusedError:
        return event.data  # deleted just now
    return job.model_dump_json()
