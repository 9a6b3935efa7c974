"""The slot of a process: its index, from 0, among the processes of its service."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """The index, from 0, of one of the service's processes, which share its port; a restarted process keeps it."""

    service: str  # random at the service's start; distinguishes services on the same Redis
    index: int
    count: int

    @property
    def is_first(self) -> bool:
        """Return whether this process does the work that only one process of a service does: upkeep and webhooks."""
        return self.index == 0

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its metrics and log lines; none if the service has one process."""
        return {} if self.count == 1 else {"process": str(self.index)}


ALONE = Slot("", 0, 1)
