"""The claim of one job, and the commands that the queue gives a worker's loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.contract.job import CheckpointRecord, ImageRecord
from jobs.contract.request import ResolvedRequest
from jobs.redis.record import Record
from tracing.propagation import trace_id_of
from vocabulary.priorities import Priority


@dataclass(frozen=True)
class Claim:
    """The right to run one job and write its results, as long as the job's record has its token."""

    job_id: str
    token: str
    request: ResolvedRequest
    attempt: int
    alone: bool  # workers died while it ran beside other jobs, so nothing may run beside it
    class_name: str | None
    created_at: float
    checkpoint: CheckpointRecord | None = None  # of an earlier attempt
    published: tuple[ImageRecord, ...] = ()  # by earlier attempts
    request_id: str = ""  # of the HTTP request that queued it
    traceparent: str = ""  # of that request's trace

    @classmethod
    def of(cls, record: Record, token: str, request: ResolvedRequest) -> "Claim":
        """The claim of a queued job, with what its record has of earlier attempts."""
        return cls(
            job_id=record.id,
            token=token,
            request=request,
            attempt=record.starts + 1,
            alone=record.deaths.runs_alone,
            class_name=record.class_name,
            created_at=record.created_at,
            checkpoint=record.checkpoint,
            published=tuple(record.images),
            request_id=record.request_id,
            traceparent=record.traceparent,
        )

    @property
    def ids(self) -> dict[str, str]:
        """The fields that identify the job in log lines."""
        ids = {"job_id": self.job_id, "request_id": self.request_id, "trace_id": trace_id_of(self.traceparent)}
        return {name: value for name, value in ids.items() if value}


@dataclass(frozen=True)
class Submit:
    claim: Claim


@dataclass(frozen=True)
class Cancel:
    job_id: str


WouldRun = Callable[[str, Priority, Mapping[str, int]], bool]
"""Returns whether a job would run at once, from its pipeline, its priority, and its steps by stage, summed over its
images."""
