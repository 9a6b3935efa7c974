"""Being told to stop."""

import time

LOOK_SECONDS = 0.02


class Stopping:
    """Set once a worker is to stop; asked_at, of the monotonic clock, says when that was: not yet is never.

    No threading.Event: a signal's handler sets this, and whoever it interrupts may hold an Event's lock.
    """

    def __init__(self) -> None:
        self.asked_at = float("inf")

    def set(self) -> None:
        self.asked_at = min(self.asked_at, time.monotonic())

    def is_set(self) -> bool:
        return self.asked_at < float("inf")

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until it is set."""
        until = time.monotonic() + seconds
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
