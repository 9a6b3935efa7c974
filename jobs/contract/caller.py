"""A caller of the service, and what it may see."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

CALLER_ID = re.compile(r"[0-9a-f]{12}")
KEY = re.compile(rf"adm_({CALLER_ID.pattern})_[A-Za-z0-9_-]{{43}}")  # the caller's id, and 256 random bits


class Role(StrEnum):
    USER = "user"  # its own jobs and files
    OPERATOR = "operator"  # all jobs and files, workers, training runs, metrics
    METRICS = "metrics"  # only /metrics


@dataclass(frozen=True)
class Caller:
    """The holder of a key. `id` stays the same when the key is rotated; records contain `id`, never the key."""

    id: str
    role: Role
    weight: float = 1.0  # share of its turns, relative to other callers
    key_sha256: str = field(default="", repr=False, compare=False)  # SHA-256 of the presented key

    def may_see(self, owner: str) -> bool:
        """Return whether this caller may see a job or file. owner: its caller's id; "" if it was made without a key."""
        return self.role is Role.OPERATOR or (self.role is Role.USER and owner == self.id)


ANONYMOUS = Caller("", Role.OPERATOR)  # every caller, if there are no keys
