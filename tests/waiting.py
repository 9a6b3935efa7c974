"""Waiting for effects of other processes and threads, which set no event of ours."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 300.0  # for a busy machine; each wait ends as soon as its condition is met

Found = TypeVar("Found")


def eventually(holds: Callable[[], Found], what: str, seconds: float = PATIENCE_SECONDS) -> Found:
    """Wait until something holds, and return it; fail if it does not within the seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)
    return found
