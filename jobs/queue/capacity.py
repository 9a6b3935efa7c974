"""The limits on jobs, on queued jobs and on Redis' memory, and the share of these limits that one caller may have."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from redis.client import Pipeline as RedisPipeline

from jobs.contract.caller import Caller, Role
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import JobStatus
from jobs.queue.job_bytes import JobBytes
from jobs.redis import keys
from jobs.redis.server import RETRY_SECONDS, ServerReader
from jobs.settings import Settings

KEPT_FREE = 0.1  # share of the server's own memory limit; accepted jobs still need memory until they end
OWN_SHARE = 0.75  # of each limit, for the jobs of one caller of role user; the rest is for others


@dataclass
class JobCounts:
    """The numbers of all jobs, or of one caller's, and of their webhooks that are pending."""

    kept: int
    queued: int
    webhooks: int


class Room:
    """The room for more jobs, by counts that were read in one round trip with other commands."""

    def __init__(
        self, settings: Settings, server: ServerReader, job_bytes: JobBytes, all: JobCounts, own: dict[str, JobCounts]
    ) -> None:
        self._settings, self._server, self._job_bytes, self._all, self._own = settings, server, job_bytes, all, own

    def copy(self) -> "Room":
        own = {caller: replace(counts) for caller, counts in self._own.items()}
        return Room(self._settings, self._server, self._job_bytes, replace(self._all), own)

    def refuse_if_none(self, caller: Caller, webhook_url: str | None) -> None:
        """Raises: RefusedError if there is no room for one more job of a caller, or Redis must not be used."""
        server = self._server.usable()
        max_bytes = self._settings.max_redis_bytes
        if server.max_bytes:
            max_bytes = min(max_bytes, int(server.max_bytes * (1 - KEPT_FREE)))
        all_, own = self._all, self._own[caller.id]
        most_queued, most_kept = self._settings.max_queued_jobs, self._settings.max_jobs
        names_queued, names_kept = "ADM_MAX_QUEUED_JOBS", "ADM_MAX_JOBS, ADM_RETENTION_SECONDS"
        limits = [
            (all_.queued, most_queued, "jobs are queued", names_queued),
            (all_.kept, most_kept, "jobs are kept", names_kept),
            (server.used_bytes, max_bytes, "bytes are used in Redis", "ADM_MAX_REDIS_BYTES, its own maxmemory"),
        ]
        if has_share(caller):
            most_bytes = share_of(max_bytes)
            if server.used_bytes >= most_bytes:  # else no caller's jobs can have as many
                names = "three quarters of ADM_MAX_REDIS_BYTES, or of its own maxmemory"
                own_bytes = self._job_bytes.of(caller.id)
                limits.append((own_bytes, most_bytes, "bytes in Redis, by a sample, are of your jobs", names))
            limits += [
                (own.queued, share_of(most_queued), "of your jobs are queued", f"three quarters of {names_queued}"),
                (own.kept, share_of(most_kept), "of your jobs are kept", f"three quarters of {names_kept}"),
            ]
        if webhook_url is not None:  # deliveries outlive their jobs, whose removal would make room for more of them
            limits.append((all_.webhooks, most_kept, "webhooks are pending", "ADM_MAX_JOBS"))
            if has_share(caller):
                what, names = "of your webhooks are pending", "three quarters of ADM_MAX_JOBS"
                limits.append((own.webhooks, share_of(most_kept), what, names))
        for used, limit, what, names in limits:
            if used >= limit:
                detail = f"{used} {what}, and the limit is {limit} ({names})"
                raise RefusedError(ErrorKind.QUEUE_FULL, detail, retry_after_seconds=RETRY_SECONDS)

    def take(self, caller: Caller) -> None:
        """Take the place of one job of a caller."""
        for each in (self._all, self._own[caller.id]):
            each.kept += 1
            each.queued += 1


def has_share(caller: Caller) -> bool:
    """Return whether a caller may have only its share of the limits: an operator may use all of them."""
    return caller.role is Role.USER


def share_of(limit: float) -> int:
    """The part of a limit that one caller may use; at least 1."""
    return max(1, int(OWN_SHARE * limit))


def ask_room(pipe: RedisPipeline, callers: Iterable[str]) -> None:
    """Queue the commands whose answers `take_room` parses."""
    for caller in ("", *callers):
        pipe.zcard(keys.index(None, caller))
        pipe.zcard(keys.index(JobStatus.QUEUED, caller))
        pipe.zcard(keys.webhooks_of(caller) if caller else keys.WEBHOOKS)


def take_room(
    replies: Iterator[Any], settings: Settings, server: ServerReader, job_bytes: JobBytes, callers: Iterable[str]
) -> Room:
    all_, *own = (JobCounts(*(next(replies) or 0 for _ in range(3))) for _ in ("", *callers))
    return Room(settings, server, job_bytes, all_, dict(zip(callers, own, strict=True)))
