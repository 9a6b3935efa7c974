"""The stop signal of a worker."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_SECONDS = 0.02  # between two looks while `wait` sleeps
AGAIN_SECONDS = 1.0  # until a start that continues after a signal is interrupted again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedStartError(BaseException):
    """A signal came while the worker had no job; a BaseException, so that no handler of errors catches it."""


class Stopping:
    """A flag, set when a worker must stop. asked_at: the monotonic time at which it was set; infinity before.

    Not a threading.Event: a signal handler sets this, and the interrupted code may hold the Event's lock.
    """

    def __init__(self) -> None:
        self.asked_at = float("inf")
        self._interrupts = False

    def listen(self) -> None:
        """Let the first SIGTERM or SIGINT set this, and the second end the process at once. For the main thread."""
        for each in SIGNALS:
            signal.signal(each, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self.set()
        if self._interrupts:
            signal.signal(signal.SIGALRM, self._interrupt_again)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            raise InterruptedStartError

    def _interrupt_again(self, number: int, frame: FrameType | None) -> None:
        """Raise again, because Python swallows an exception in a callback of the compiler."""
        if self._interrupts:
            raise InterruptedStartError

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the first signal end the block at any point. For blocks that may take minutes and need no cleanup.

        Raises: InterruptedStartError: at the block's start, if the signal came before it; at the block's end, if the
        signal came where Python swallows exceptions; also if a library replaced it with an error of its own (torch
        raises ValueError while it makes a tensor of a storage).
        """
        try:
            self._interrupts = True  # before the check, or a signal between the two would be noticed only at the end
            if self.is_set():
                raise InterruptedStartError
            yield
        except Exception as error:
            if self.is_set():
                raise InterruptedStartError from error
            raise
        finally:
            self._interrupts = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.is_set():
            raise InterruptedStartError

    def set(self) -> None:
        self.asked_at = min(self.asked_at, time.monotonic())

    def is_set(self) -> bool:
        return self.asked_at < float("inf")

    def wait(self, seconds: float) -> None:
        """Sleep until the seconds are over or this is set."""
        until = time.monotonic() + seconds
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
