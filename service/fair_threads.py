"""Threads for blocking calls, such as those of Redis and the image store; callers take turns for a thread."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from jobs.contract.caller import Caller
from jobs.contract.errors import ErrorKind, RefusedError
from service.fair_turns import FairTurns
from service.problems import RETRY_AFTER_SECONDS

T = TypeVar("T")

MAX_WAITING = 128  # calls that wait for a thread; three times the images of the service's own page
PATIENCE_SECONDS = 5.0  # longest wait for a thread; clients give up soon after


class FairThreads:
    """Runs blocking calls in its own threads, for which callers take turns. For one event loop."""

    def __init__(
        self,
        threads: int,
        busy: str,
        max_waiting: int = MAX_WAITING,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`busy`: the error's detail for a call that waits too long."""
        self._max_waiting, self._patience_seconds, self._busy = max_waiting, patience_seconds, busy
        self._turns = FairTurns(threads)
        self._threads = CapacityLimiter(threads)

    async def run(self, call: Callable[[], T], caller: Caller) -> T:
        """Run a call in a thread, and return what it returns.

        Raises: RefusedError if too many calls wait already or no thread is free in time; then the call was not made.
        """
        most_of_caller = self._max_waiting * 3 // 4 if caller.id else self._max_waiting  # the rest is for others
        if self._turns.waiting(caller.id) >= most_of_caller or self._turns.all_waiting() >= self._max_waiting:
            raise RefusedError(ErrorKind.UNAVAILABLE, self._busy, retry_after_seconds=RETRY_AFTER_SECONDS)
        async with self._turns.turn(caller.id, self._patience_seconds, self._busy):
            return await to_thread.run_sync(call, limiter=self._threads)

    async def run_without_limit(self, call: Callable[[], T], caller: Caller) -> T:
        """Like `run`, for a call that must be made however many wait and however long it takes."""
        async with self._turns.turn(caller.id, None, self._busy):
            return await to_thread.run_sync(call, limiter=self._threads)
