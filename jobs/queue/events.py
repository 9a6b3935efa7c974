"""Events of a job: a capped stream in Redis, which clients can replay from an id, and previews, which are not kept."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.job import Progress
from jobs.redis import keys
from jobs.redis.replies import answers
from jobs.redis.rq_keys import job_key

MAX_EVENTS = 2000  # of one job; progress is throttled to some 200 an attempt
START = "0-0"
PREVIEW_INDEX = re.compile(rb'"index":(\d{1,9})')  # `publish_preview` writes it before the picture
Entries = Iterable[tuple[bytes, dict[bytes, bytes]]]  # XRANGE's answer, if the client does not decode bytes


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
        """Return whether this is the last event of a job."""
        return self in FINAL_EVENTS


KINDS = {each.encode(): each for each in EventKind}
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


def publish(pipe: RedisPipeline, job_id: str, kind: EventKind, data: dict[str, Any]) -> None:
    """Append an event to the job's stream, in the transaction of the change itself, and wake readers."""
    text = json.dumps({"id": job_id, **data}, separators=(",", ":"))
    pipe.xadd(keys.events(job_id), {"event": kind, "data": text}, maxlen=MAX_EVENTS)
    pipe.publish(keys.channel(job_id), b"")


# One command, because progress is reported often. A worker that stalled past its lease must not add events to a job
# that another worker has ended, and a deleted job must not get a stream that nobody would remove. The progress that
# polls read expires. The job's hash keeps a copy, which shows the step that the job had reached when its worker died.
PROGRESS_SCRIPT = """
local job, progress, events = KEYS[1], KEYS[2], KEYS[3]
local token, text, seconds, event, data, kept, channel = unpack(ARGV)
local found = redis.call('HMGET', job, 'adm_token', 'status')
if found[1] ~= token or found[2] ~= 'started' then return 0 end
redis.call('SET', progress, text, 'EX', seconds)
redis.call('HSET', job, 'adm_reached', text)
if data ~= '' then
    redis.call('XADD', events, 'NOMKSTREAM', 'MAXLEN', '~', kept, '*', 'event', event, 'data', data)
    redis.call('PUBLISH', channel, '')
end
return 1
"""


@dataclass(frozen=True)
class ProgressReport:
    """The progress of one execution of a job, identified by `token`."""

    job_id: str
    token: str
    progress: Progress
    as_event: bool  # whether it is published as an event too; polls read it in either case


class ProgressPublisher:
    """Publishes progress of jobs, as long as the reporting execution has the job's token."""

    def __init__(self, redis: Redis, kept_seconds: int) -> None:
        self._redis, self._kept_seconds = redis, kept_seconds
        self._script = redis.register_script(PROGRESS_SCRIPT)

    def publish(self, reports: Sequence[ProgressReport]) -> dict[str, Exception]:
        """Publish reports in one round trip, except those of executions that lost their job; return errors by job."""
        with self._redis.pipeline(transaction=False) as pipe:
            for each in reports:
                names = [job_key(each.job_id), keys.progress(each.job_id), keys.events(each.job_id)]
                self._script(names, self._arguments(each), client=pipe)
            answers = pipe.execute(raise_on_error=False)
        pairs = zip(reports, answers, strict=True)
        return {each.job_id: answer for each, answer in pairs if isinstance(answer, Exception)}

    def _arguments(self, report: ProgressReport) -> list[str | int]:
        event = {"id": report.job_id, **report.progress.model_dump()}
        data = json.dumps(event, separators=(",", ":")) if report.as_event else ""
        note = (report.token, report.progress.model_dump_json(), self._kept_seconds)
        return [*note, EventKind.PROGRESS.value, data, MAX_EVENTS, keys.channel(report.job_id)]


def publish_preview(redis: Redis, job_id: str, preview: Preview) -> None:
    """Publish a preview to the present listeners; it is not stored."""
    data = {"id": job_id, **asdict(preview), "png": b64encode(preview.png).decode()}
    redis.publish(keys.channel(job_id), json.dumps(data, separators=(",", ":")))


def image_of_preview(data: bytes) -> int:
    """The image index of a published preview."""
    found = PREVIEW_INDEX.search(data)
    return int(found[1]) if found else 0


class StreamPosition(NamedTuple):
    """The position of a reader in a job's events."""

    job_id: str
    last_id: str
    caller: str = ""  # the reader's id, for its turns


def read_events(redis: Redis, positions: Sequence[StreamPosition]) -> list[list[Event]]:
    """The events after each position, in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for each in positions:
            pipe.xrange(keys.events(each.job_id), min=f"({each.last_id}")
        return [decode(entries or ()) for entries in answers(pipe)]


def decode(entries: Entries) -> list[Event]:
    """Parse XRANGE's answer; entries that are not events are skipped."""
    return [
        Event(id.decode(), kind, fields.get(b"data", b"{}").decode(errors="replace"))
        for id, fields in entries
        if (kind := KINDS.get(fields.get(b"event", b"")))
    ]
