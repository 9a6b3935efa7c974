"""Holding jobs through a step that takes longer than a lease."""

import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger("worker.renewing")

LONGEST_STEP_SECONDS = 600.0  # whatever is silent for longer hangs: others are to have its jobs, unless it comes back


class Renewing:
    """A thread that extends leases for as long as the worker's loop may still be in a step.

    It is stopped with its process: a worker that stalls as a whole loses its jobs as if there were no such thread.
    """

    def __init__(self, extend: Callable[[], None], lease_seconds: float) -> None:
        self._extend = extend
        self._every_seconds = lease_seconds / 3  # so that one time without Redis costs no lease
        self._heard_at = time.monotonic()
        self._over = Event()
        self._thread = Thread(target=self._renew, name="renewing", daemon=True)

    def hear(self) -> None:
        """Note that the loop goes on."""
        self._heard_at = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()  # or it could speak for a worker that has withdrawn

    def _renew(self) -> None:
        while not self._over.wait(self._every_seconds):
            silent_seconds = time.monotonic() - self._heard_at
            if silent_seconds < LONGEST_STEP_SECONDS:
                self._extend()
            else:
                log.error("step_hangs", silent_seconds=round(silent_seconds))
