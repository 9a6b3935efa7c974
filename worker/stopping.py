"""Being told to stop."""

import time
from threading import Event


class Stopping(Event):
    """Set once a worker is to stop; asked_at, of the monotonic clock, says when that was: not yet is never."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at = float("inf")

    def set(self) -> None:
        self.asked_at = min(self.asked_at, time.monotonic())
        super().set()
