"""A semaphore that serves its waiting callers in turn: one request of each caller per round."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jobs.contract.errors import ErrorKind, RefusedError
from service.problems import RETRY_AFTER_SECONDS


class FairTurns:
    """A semaphore with turns between callers, for one event loop. Requests of one caller keep their order."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by caller, in the order of turns

    def waiting(self, caller: str) -> int:
        """The number of a caller's requests that wait."""
        return len(self._waiting.get(caller, ()))

    def all_waiting(self) -> int:
        """The number of all requests that wait."""
        return sum(map(len, self._waiting.values()))

    async def acquire(self, caller: str) -> None:
        """Wait for a turn; `release` ends it. A cancelled wait uses no turn."""
        if self._free > 0:  # then nobody waits
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn was granted at the same moment
                self.release()
            else:
                self._leave(caller, turn)
            raise

    def _leave(self, caller: str, turn: asyncio.Future[None]) -> None:
        own = self._waiting.get(caller, deque())
        if turn in own:  # otherwise `release` has removed it already
            own.remove(turn)
        if not own:
            self._waiting.pop(caller, None)

    @asynccontextmanager
    async def turn(self, caller: str, patience_seconds: float | None, busy: str) -> AsyncIterator[None]:
        """Hold a turn within the block.

        Raises: RefusedError with the detail `busy` after a longer wait; never if patience_seconds is None.
        """
        try:
            async with asyncio.timeout(patience_seconds):
                await self.acquire(caller)
        except TimeoutError as error:
            raise RefusedError(ErrorKind.UNAVAILABLE, busy, retry_after_seconds=RETRY_AFTER_SECONDS) from error
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """End a turn; the next one goes to the waiting caller that has waited longest since its last turn."""
        while self._waiting:
            caller = next(iter(self._waiting))
            own = self._waiting.pop(caller)
            turn = own.popleft()
            if own:
                self._waiting[caller] = own  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
