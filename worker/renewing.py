"""Watching the loop from another thread: jobs are held through long steps, and a step that hangs ends the worker."""

import os
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger("worker.renewing")

HUNG_STATUS = 70  # of the process; sysexits.h calls it an internal software error
LOOKS = 4  # at the loop, within the time that a step may take


class Renewing:
    """A thread that extends leases for as long as the worker's loop may still be in a step.

    It is stopped with its process: a worker that stalls as a whole loses its jobs as if there were no such thread. A
    loop that is silent for longer than step_timeout_seconds waits for a device that hangs. No exception gets it out of
    there, so `hangs` is called, with the seconds of silence, and ends the process.
    """

    def __init__(
        self,
        extend: Callable[[], None],
        lease_seconds: float,
        step_timeout_seconds: float,
        hangs: Callable[[float], None],
    ) -> None:
        self._extend, self._hangs, self._step_timeout_seconds = extend, hangs, step_timeout_seconds
        self._every_seconds = lease_seconds / 3  # so that one time without Redis costs no lease
        self._heard_at = time.monotonic()
        self._over = Event()
        self._thread = Thread(target=self._watch, name="renewing", daemon=True)

    def hear(self) -> None:
        """Note that the loop goes on."""
        self._heard_at = time.monotonic()

    def __enter__(self) -> Self:
        self.hear()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()  # or it could speak for a worker that has withdrawn

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
    """End the process at once; no thread that hangs is waited for."""
    os._exit(HUNG_STATUS)
