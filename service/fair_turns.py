"""A semaphore that serves its waiting callers in turn: one request of each caller per round."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jobs.contract.errors import ErrorKind, RefusedError
from service.problems import RETRY_AFTER_SECONDS
from service.turns import Turns


class FairTurns:
    """A semaphore with turns between callers, for one event loop. Requests of one caller keep their order."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting = Turns[asyncio.Future[None]]()

    def waiting(self, caller: str) -> int:
        """The number of a caller's requests that wait."""
        return self._waiting.number_of(caller)

    def all_waiting(self) -> int:
        """The number of all requests that wait."""
        return len(self._waiting)

    async def acquire(self, caller: str) -> None:
        """Wait for a turn; `release` ends it. A cancelled wait uses no turn."""
        if self._free > 0:  # then nobody waits
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(caller, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn was granted at the same moment
                self.release()
            else:
                self._waiting.remove(caller, turn)
            raise

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
            turn = self._waiting.take()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
