"""A caller of the service, and what it may see."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

KEY = re.compile(r"adm_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")  # the caller's id, and 256 random bits


class Role(StrEnum):
    USER = "user"  # its own jobs and files
    OPERATOR = "operator"  # all jobs and files, workers, training runs, metrics
    METRICS = "metrics"  # /metrics alone


@dataclass(frozen=True)
class Caller:
    """A key's holder. `id` stays when the key is rotated; records carry it, and never the key."""

    id: str
    role: Role
    weight: float = 1.0  # share of the turns that it gets beside other callers
    key_sha256: str = field(default="", repr=False, compare=False)  # of the key that it showed

    def may_see(self, owner: str) -> bool:
        """Whether a job or a file of the caller `owner` is shown to this one; "" owns what was made without keys."""
        return self.role is Role.OPERATOR or (self.role is Role.USER and owner == self.id)


ANONYMOUS = Caller("", Role.OPERATOR)  # everybody, where there are no keys
