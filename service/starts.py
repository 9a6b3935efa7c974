"""Starts requests, a few in each round of the event loop; addresses take turns."""

import asyncio
from collections.abc import Callable

from service.turns import Turns

# Requests started in a round. With 8, fewer requests shared a round trip to Redis, and the service answered a seventh
# fewer POSTs per second.
MOST = 32


class Starts:
    """The requests that wait for their start; for one event loop.

    Without turns, each round starts the next request of every connection. A client that sends requests ahead on many
    connections would then put one request per connection into each round, for which all other requests wait.
    """

    def __init__(self) -> None:
        self._waiting = Turns[Callable[[], None]]()
        self._is_due = False  # True: a round is scheduled

    def add(self, address: str, start: Callable[[], None]) -> None:
        """Call `start` in one of the next rounds."""
        self._waiting.add(address, start)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run_round)

    def _run_round(self) -> None:
        for _ in range(MOST):
            if not self._waiting:
                break
            self._waiting.take()()
        self._is_due = bool(self._waiting)
        if self._is_due:
            asyncio.get_running_loop().call_soon(self._run_round)
