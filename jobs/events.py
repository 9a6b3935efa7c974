"""Events of a job: a capped stream in Redis that is replayed by id, and previews, which are not kept."""

import json
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from redis.client import Pipeline, Redis

from jobs import keys
from jobs.books import encodable
from jobs.job import Progress

MAX_EVENTS = 2000  # of one job; progress is throttled to some 200 an attempt
START = "0-0"
Entries = Iterable[tuple[bytes, dict[bytes, bytes]]]  # what XRANGE answers, for a client that leaves bytes as they are


class EventKind(StrEnum):
    QUEUED = "queued"
    STARTED = "started"
    PROGRESS = "progress"
    PREVIEW = "preview"
    IMAGE = "image"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """The last event of a job."""
        return self in FINAL_EVENTS


FINAL_EVENTS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED, EventKind.EXPIRED})


class Event(NamedTuple):
    id: str
    kind: EventKind
    data: str  # JSON


@dataclass(frozen=True)
class Preview:
    """The prediction of a job's image `index` after a step of a stage."""

    index: int
    stage: str
    step: int
    steps: int
    png: bytes


def publish(pipe: Pipeline, job_id: str, kind: EventKind, data: dict[str, Any]) -> None:
    """Append an event to the job's stream, as part of the transaction that makes it true, and wake who waits."""
    text = json.dumps({"id": job_id, **data}, separators=(",", ":"))
    pipe.xadd(keys.events(job_id), {"event": kind, "data": text}, maxlen=MAX_EVENTS)
    pipe.publish(keys.channel(job_id), b"")


def publish_progress(pipe: Pipeline, job_id: str, progress: Progress) -> None:
    """Append a progress event, unless the job was deleted meanwhile: that would leave a stream nobody removes."""
    text = json.dumps({"id": job_id, **progress.model_dump()}, separators=(",", ":"))
    fields = {"event": EventKind.PROGRESS, "data": text}
    pipe.xadd(keys.events(job_id), encodable(fields), maxlen=MAX_EVENTS, nomkstream=True)
    pipe.publish(keys.channel(job_id), b"")


def publish_preview(redis: Redis, job_id: str, preview: Preview) -> None:
    """Show a preview to whoever listens just now."""
    data = {"id": job_id, **asdict(preview), "png": b64encode(preview.png).decode()}
    redis.publish(keys.channel(job_id), json.dumps(data, separators=(",", ":")))


def after(event_id: str) -> str:
    """Lower end of a range that begins just behind an event."""
    return f"({event_id}"


def decode(entries: Entries) -> list[Event]:
    """Events from what XRANGE answers."""
    return [
        Event(id.decode(), EventKind(fields[b"event"].decode()), fields[b"data"].decode()) for id, fields in entries
    ]
