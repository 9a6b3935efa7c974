"""Calls that run on other threads, with callbacks that run on the loop's thread."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class BackgroundCalls:
    """Runs calls on threads. The callback of each call runs on the loop's thread, inside `run_callbacks`."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def start(self, threads: Executor, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """Make a call on one of the threads; `then` gets its result. `run_callbacks` raises its exception."""

        def note(future: Future[T]) -> None:
            if not future.cancelled():
                self._ended.put(lambda: then(future.result()))

        threads.submit(call).add_done_callback(note)

    def run_callbacks(self, wait_seconds: float) -> None:
        """Run the callbacks of calls that have ended, in the order of their ends; wait up to wait_seconds for one."""
        try:
            callback = self._ended.get(timeout=wait_seconds) if wait_seconds > 0 else self._ended.get_nowait()
        except Empty:
            return
        callback()
        # only of calls that have ended by now: the next step waits for the callbacks
        for _ in range(self._ended.qsize()):
            self._ended.get_nowait()()


def ignore(result: object) -> None:
    """Ignore a result that nobody needs."""
