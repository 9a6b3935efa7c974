"""Watches the loop from another thread: extends leases during long steps, and ends a worker whose step hangs."""

import os
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger("worker.watchdog")

HUNG_STATUS = 70  # exit status: EX_SOFTWARE of sysexits.h, an internal software error
LOOKS = 4  # looks at the loop within step_timeout_seconds


class Watchdog:
    """A thread that extends leases as long as the worker's loop may still be in a step.

    If the whole process stalls, this thread stalls too, and the leases end. A loop that is silent for longer than
    step_timeout_seconds waits for a device that hangs. No exception can interrupt it, so this calls `hangs` with the
    seconds of silence, which ends the process.
    """

    def __init__(
        self,
        extend: Callable[[], None],
        lease_seconds: float,
        step_timeout_seconds: float,
        hangs: Callable[[float], None],
    ) -> None:
        self._extend, self._hangs, self._step_timeout_seconds = extend, hangs, step_timeout_seconds
        self._every_seconds = lease_seconds / 3  # so that one failed call to Redis costs no lease
        self._heard_at = time.monotonic()
        self._over = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)

    def note_running(self) -> None:
        """Note that the loop is running."""
        self._heard_at = time.monotonic()

    def __enter__(self) -> Self:
        self.note_running()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()  # otherwise it could extend the keys of a worker that has withdrawn

    def _watch(self) -> None:
        extends_at = time.monotonic() + self._every_seconds
        while not self._over.wait(min(self._every_seconds, self._step_timeout_seconds / LOOKS)):
            now = time.monotonic()
            silent_seconds = now - self._heard_at
            if silent_seconds > self._step_timeout_seconds:
                self._hangs(silent_seconds)
                return
            if now >= extends_at:
                self._extend()
                extends_at = now + self._every_seconds


def end_process() -> None:
    """End the process at once, without waiting for threads that hang."""
    os._exit(HUNG_STATUS)
