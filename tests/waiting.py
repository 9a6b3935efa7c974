"""Waiting for what other processes and threads bring about: they set no event of ours."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 300.0  # for a busy machine; nothing waits longer than it must

Found = TypeVar("Found")


def eventually(holds: Callable[[], Found], what: str, seconds: float = PATIENCE_SECONDS) -> Found:
    """Wait until something holds, and return it; fail if it does not within the seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)
    return found
