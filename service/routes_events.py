"""/v1/jobs/{id}/events: streams a job's events, from its first one or from a given id on."""

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
from jobs.queue.events import START, Event, EventKind, StreamPosition
from jobs.queue.job_queue import Asked, unknown_job
from jobs.views.job_views import image_url
from service.authentication import CallerDep
from service.hub import RECHECK_SECONDS
from service.openapi import EVENT_STREAM
from service.problems import documented
from service.state import Service, ServiceDep
from service.streams import IsGone, Stream
from service.strict_query import StrictQueryRoute

log = structlog.get_logger("service.events")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictQueryRoute)

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
    response_class=Response,  # a plain Response, because FastAPI's own class would encode the events
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
    if record.status.is_final and not await service.events.ask(StreamPosition(job_id, last_id, asked.caller.id)):
        return Response(status_code=204)  # any other answer would make an EventSource reconnect for ever
    return Stream(lambda is_gone: events(is_gone, service, asked, last_id), {"Cache-Control": "no-store"})


async def events(is_gone: IsGone, service: Service, asked: Asked, last_id: str) -> AsyncIterator[bytes]:
    """Encoded events after last_id, up to and including the job's last."""
    yield format_sse_event(comment="open", retry=RECONNECT_MS)
    async with aclosing(follow(is_gone, service, asked, last_id)) as found:
        async for each in found:
            if each is None:
                yield format_sse_event(comment="ping")
            else:
                yield format_sse_event(data_str=each.data, event=each.kind, id=each.id or None)


async def follow(is_gone: IsGone, service: Service, asked: Asked, last_id: str) -> AsyncGenerator[Event | None]:
    """Events after last_id, up to and including the job's last; None after a long time without an event.

    Previews are sent as they arrive, after events such as `queued` that were read by then, but before images. Ends when
    the caller's key is revoked.
    """
    job_id = asked.job_id
    ping_at = time.monotonic() + PING_SECONDS
    try:
        async with service.hub.listen(job_id) as listener:
            while not service.hub.stopping and not await is_gone():
                found = await service.events.ask(StreamPosition(job_id, last_id, asked.caller.id))
                if not await service.keyring.still_opens(asked.caller):
                    return
                for each in found:
                    if each.kind is EventKind.IMAGE or each.kind.is_final:  # the previews that arrived are older
                        for preview in listener.previews():
                            yield preview_after(last_id, preview)
                    last_id = each.id
                    yield each._replace(data=await data_of(service, asked, each))
                    if each.kind.is_final:
                        return
                for preview in listener.previews():
                    yield preview_after(last_id, preview)
                if not found and await service.records.ask(asked) is None:
                    gone = json.dumps({"id": job_id, "status": EventKind.CANCELLED, "deleted": True})
                    yield Event(last_id, EventKind.CANCELLED, gone)
                    return
                if time.monotonic() >= ping_at:
                    yield None
                    ping_at = time.monotonic() + PING_SECONDS
                await listener.wait(RECHECK_SECONDS)
    except RedisError as error:
        # the stream has started, so no error status can be sent; the client reconnects with its last id
        log.warning("redis_unavailable", error=type(error).__name__)


def preview_after(last_id: str, preview: str) -> Event:
    """A preview has the id of the event before it, so that a client that reconnects misses no event."""
    return Event("" if last_id == START else last_id, EventKind.PREVIEW, preview)


async def data_of(service: Service, asked: Asked, event: Event) -> str:
    """The data of an event: an `image` event gets the image's address, and the last event the whole job."""
    if event.kind is EventKind.IMAGE:
        return with_image_url(event.data, service.settings.root_path, asked.job_id)
    if not event.kind.is_final:
        return event.data
    try:
        job = await service.lookups.ask(asked)
    except RefusedError:
        return event.data  # the job was deleted meanwhile
    return job.model_dump_json()


def with_image_url(data: str, root_path: str, job_id: str) -> str:
    """The data of an `image` event with the image's address, which workers do not know."""
    try:
        facts = json.loads(data)
        return json.dumps(facts | {"url": image_url(root_path, job_id, int(facts["index"]))}, separators=(",", ":"))
    except (ValueError, TypeError, KeyError, RecursionError):  # corrupt: passed on as it is
        return data
