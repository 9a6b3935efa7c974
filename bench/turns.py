"""A Python version of the script of `jobs.callers.turns`, for the simulation; a test compares their orders."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Turn(NamedTuple):
    starts: float
    caller: str
    share: float


class Line(Generic[T]):
    """The jobs of a pipeline and priority, in the order of claims."""

    def __init__(self) -> None:
        self._jobs: list[T] = []
        self._turns: dict[T, Turn] = {}
        self._ends: dict[str, float] = {}  # of each caller's latest turn

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[T]:
        return iter(self._jobs)

    def __getitem__(self, place: int) -> T:
        return self._jobs[place]

    def enter(self, job: T, caller: str, share: float) -> int:
        """Add a job at its turn; return the number of jobs before it."""
        head = self._turns[self._jobs[0]].starts if self._jobs else 0.0
        starts = max(head, self._ends.get(caller, 0.0))
        place = bisect_right(self._jobs, starts, key=lambda each: self._turns[each].starts)
        self._jobs.insert(place, job)
        self._turns[job] = Turn(starts, caller, share)
        self._ends[caller] = starts + share
        return place

    def requeue(self, job: T, caller: str) -> None:
        """Requeue a claimed job before all others, at no cost to its caller."""
        starts = self._turns[self._jobs[0]].starts if self._jobs else 0.0
        self._jobs.insert(0, job)
        self._turns[job] = Turn(starts, caller, 0.0)

    def leave(self, job: T, *, served: bool) -> None:
        self._jobs.remove(job)
        turn = self._turns.pop(job)
        if not self._jobs:
            self._ends.clear()
        elif not served:
            self._ends[turn.caller] = self._ends.get(turn.caller, 0.0) - turn.share
