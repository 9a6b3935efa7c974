"""One line of `adm doctor`, whichever room checked it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What a check found. A fault keeps a start from working; a warning does not."""

    check: str
    verdict: Verdict
    text: str  # one line: what is so, and for a warning or a fault how to mend it
