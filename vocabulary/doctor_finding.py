"""The result of one check of `adm doctor`."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """The result of a check. A fault prevents a start; a warning does not."""

    check: str
    verdict: Verdict
    text: str  # one line: the state, and for a warning or a fault how to correct it
