"""Filters of a list of jobs, other than status."""

from dataclasses import dataclass

from jobs.redis.record import Record
from jobs.views.job_views import readable_request


@dataclass(frozen=True)
class JobFilter:
    """Properties that a job must have; fields that are not set match all jobs."""

    model: str | None = None
    class_label: str | None = None  # index or name
    metadata: tuple[str, ...] = ()  # "key=value" pairs that it must have; the key ends at the first "="

    @property
    def admits_all(self) -> bool:
        return self == JobFilter()

    def admits(self, record: Record) -> bool:
        """Return whether a job matches; an unreadable request has no class and no metadata."""
        if self.model is not None and record.pipeline != self.model:
            return False
        if self.class_label is None and not self.metadata:
            return True
        if (request := readable_request(record)) is None:
            return False
        names = (record.class_name, str(request.class_label))
        if self.class_label is not None and (request.class_label is None or self.class_label not in names):
            return False
        given = {f"{key}={value}" for key, value in (request.metadata or {}).items() if "=" not in key}
        return given.issuperset(self.metadata)
