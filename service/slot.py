"""Which of a service's processes this one is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """The slot of a process among those that share one service's port; it outlives the process that has it."""

    service: str  # drawn when the service starts; tells its processes from those of other services on the same Redis
    index: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this process does what one process of a service does for all: upkeep and webhooks."""
        return self.index == 0

    @property
    def labels(self) -> dict[str, str]:
        """What its metrics and log lines carry beside their own; nothing where the service is one process."""
        return {} if self.count == 1 else {"process": str(self.index)}


ALONE = Slot("", 0, 1)
