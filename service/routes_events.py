"""/v1/jobs/{id}/events: a job's events as they come, and those that were missed."""

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Response
from fastapi.sse import format_sse_event
from redis.exceptions import RedisError

from jobs.contract.errors import RefusedError
from jobs.job_queue import Asked, unknown_job
from jobs.queue.events import START, Event, EventKind, Place
from service.authentication import CallerDep
from service.hub import RECHECK_SECONDS
from service.openapi import EVENT_STREAM
from service.problems import documented
from service.state import Service, ServiceDep
from service.streams import IsGone, Stream

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
    response_class=Response,  # with its own class FastAPI would encode the events
    responses={**STREAM, **documented(404, 503)},
)
async def stream_events(
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    asked = Asked(job_id, caller)
    record = await service.records.ask(asked)
    if record is None:
        raise unknown_job(job_id)
    last_id = last_event_id if last_event_id is not None and EVENT_ID.fullmatch(last_event_id) else START
    if record.status.is_final and not await service.events.ask(Place(job_id, last_id)):
        return Response(status_code=204)  # all else would make an EventSource come back for ever
    return Stream(lambda is_gone: events(is_gone, service, asked, last_id), {"Cache-Control": "no-store"})


async def events(is_gone: IsGone, service: Service, asked: Asked, last_id: str) -> AsyncIterator[bytes]:
    """Events behind one, up to and with the job's last, as they are sent."""
    yield format_sse_event(comment="open", retry=RECONNECT_MS)
    async with aclosing(follow(is_gone, service, asked, last_id)) as found:
        async for each in found:
            if each is None:
                yield format_sse_event(comment="ping")
            else:
                yield format_sse_event(data_str=each.data, event=each.kind, id=each.id or None)


async def follow(is_gone: IsGone, service: Service, asked: Asked, last_id: str) -> AsyncGenerator[Event | None]:
    """Events behind one, up to and with the job's last; None now and then, when there was nothing for long.

    Previews come as they are made, under the id of the event before. Ends when the caller's key is revoked.
    """
    job_id = asked.job_id
    ping_at = time.monotonic() + PING_SECONDS
    try:
        async with service.hub.listen(job_id) as listener:
            while not service.hub.stopping and not await is_gone():
                found = await service.events.ask(Place(job_id, last_id))
                if not (await service.keyring.read()).still_opens(asked.caller):
                    return
                for preview in listener.previews():  # first: with a quick job's comes its last event
                    yield Event("" if last_id == START else last_id, EventKind.PREVIEW, preview)
                for each in found:
                    last_id = each.id
                    yield each._replace(data=await data_of(service, asked, each))
                    if each.kind.is_final:
                        return
                if not found and await service.records.ask(asked) is None:
                    gone = json.dumps({"id": job_id, "status": EventKind.CANCELLED, "deleted": True})
                    yield Event(last_id, EventKind.CANCELLED, gone)
                    return
                if time.monotonic() >= ping_at:
                    yield None
                    ping_at = time.monotonic() + PING_SECONDS
                await listener.wait(RECHECK_SECONDS)
    except RedisError as error:
        # the stream has begun, so no status can tell; the client comes back with the last id it saw
        log.warning("redis_away", error=type(error).__name__)


async def data_of(service: Service, asked: Asked, event: Event) -> str:
    """What was stored with it; with the last event comes the whole job, which changes no more."""
    if not event.kind.is_final:
        return event.data
    try:
        job = await service.lookups.ask(asked)
    except RefusedError:
        return event.data  # deleted just now
    return job.model_dump_json()
