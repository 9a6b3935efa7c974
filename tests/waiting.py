"""Waiting for what other processes and threads bring about: they set no event of ours."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 300.0  # for a busy machine; nothing waits longer than it must


def eventually(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds; fail if it does not within the seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)
