"""The limits on jobs, on queued jobs and on Redis' memory."""

from collections.abc import Iterator
from typing import Any

from redis.client import Pipeline

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import JobStatus
from jobs.queue import keys
from jobs.queue.server import RETRY_SECONDS, ServerReader
from jobs.settings import Settings

KEPT_FREE = 0.1  # share of the server's own memory limit; accepted jobs still need memory until they end


class Room:
    """The room for more jobs, by counts that were read in one round trip with other commands."""

    def __init__(self, settings: Settings, server: ServerReader, kept: int, queued: int) -> None:
        self._settings, self._server, self._kept, self._queued = settings, server, kept, queued

    def take(self) -> None:
        """Take the place of one job. Raises: RefusedError if there is none, or Redis must not be used."""
        server = self._server.usable()
        max_bytes = self._settings.max_redis_bytes
        if server.max_bytes:
            max_bytes = min(max_bytes, int(server.max_bytes * (1 - KEPT_FREE)))
        limits = (
            (self._queued, self._settings.max_queued_jobs, "jobs are queued", "ADM_MAX_QUEUED_JOBS"),
            (self._kept, self._settings.max_jobs, "jobs are kept", "ADM_MAX_JOBS, ADM_RETENTION_SECONDS"),
            (server.used_bytes, max_bytes, "bytes are used in Redis", "ADM_MAX_REDIS_BYTES, its own maxmemory"),
        )
        for used, limit, what, names in limits:
            if used >= limit:
                detail = f"{used} {what}, and the limit is {limit} ({names})"
                raise RefusedError(ErrorKind.QUEUE_FULL, detail, retry_after_seconds=RETRY_SECONDS)
        self._kept += 1
        self._queued += 1


def ask_room(pipe: Pipeline) -> None:
    """Queue the commands whose answers `take_room` parses."""
    pipe.zcard(keys.index())
    pipe.zcard(keys.index(JobStatus.QUEUED))


def take_room(replies: Iterator[Any], settings: Settings, server: ServerReader) -> Room:
    return Room(settings, server, next(replies) or 0, next(replies) or 0)
