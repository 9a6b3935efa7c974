"""Calls that other threads make for the loop, and what the loop does with their results."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Errands:
    """Starts calls on threads; what follows a call runs on the loop's thread, when that settles."""

    def __init__(self) -> None:
        self._over: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def start(self, threads: Executor, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Make a call on one of the threads; `then` gets its result. What it raises, `settle` raises."""

        def note(future: Future[T]) -> None:
            if not future.cancelled():
                self._over.put(lambda: then(future.result()))

        threads.submit(call).add_done_callback(note)

    def settle(self, wait_seconds: float) -> None:
        """Do what follows the calls that are over, in the order in which they ended; wait for the first of them."""
        try:
            follow = self._over.get(timeout=wait_seconds) if wait_seconds > 0 else self._over.get_nowait()
        except Empty:
            return
        follow()
        for _ in range(self._over.qsize()):  # and not for what ends meanwhile: the next step waits for this
            self._over.get_nowait()()


def nothing(result: object) -> None:
    """Do nothing with a result that nobody needs."""
