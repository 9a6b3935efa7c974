"""Batches calls of the queue, because a round trip to Redis costs the same for thirty calls as for one."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from service.turns import Turns

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 64  # calls per batch; later calls wait for the whole batch


class Batches(Generic[Q, A]):
    """Answers questions in batches on its own thread; questions that arrive meanwhile form the next batch.

    If more of them wait than a batch has, their callers take turns. For one event loop.
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Q]], Sequence[A | Exception]],
        caller_of: Callable[[Q], str] = lambda _: "",
    ) -> None:
        """`caller_of`: the caller of a question; by default all have the same."""
        self._answer_all, self._caller_of = answer_all, caller_of
        self._waiting = Turns[tuple[Q, asyncio.Future[A]]]()
        self._running: asyncio.Task[None] | None = None
        self._thread = CapacityLimiter(1)

    async def ask(self, question: Q) -> A:
        """Return the answer. Raises: the answer if it is an exception; the exception of the whole batch."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.add(self._caller_of(question), (question, answer))
        if self._running is None:  # in an empty context, so that log lines do not carry the first caller's request id
            self._running = asyncio.create_task(self._run(), context=contextvars.Context())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take(MOST)
            try:
                answers = await to_thread.run_sync(
                    self._answer_all, [question for question, _ in batch], limiter=self._thread
                )
            except Exception as error:  # noqa: BLE001 - every caller gets the error
                # fail the waiting questions too, because they would only get the same error later
                batch += self._take(len(self._waiting))
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._running = None

    def _take(self, most: int) -> list[tuple[Q, asyncio.Future[A]]]:
        """Take the next questions, one of each caller in a round."""
        return [self._waiting.take() for _ in range(min(most, len(self._waiting)))]
