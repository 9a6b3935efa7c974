"""A queue in which callers take turns: one entry of each caller per round."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Entries that wait, by caller; those of one caller keep their order."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # by caller, in the order of turns

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def number_of(self, caller: str) -> int:
        """The number of a caller's entries."""
        return len(self._waiting.get(caller, ()))

    def add(self, caller: str, entry: T) -> None:
        self._waiting.setdefault(caller, deque()).append(entry)

    def take(self) -> T:
        """Remove the first entry of the caller that has waited longest since its last turn; there must be one."""
        caller = next(iter(self._waiting))
        own = self._waiting.pop(caller)
        entry = own.popleft()
        if own:
            self._waiting[caller] = own  # behind all others
        return entry

    def remove(self, caller: str, entry: T) -> None:
        """Remove an entry; nothing happens if it was taken already."""
        own = self._waiting.get(caller, deque())
        if entry in own:
            own.remove(entry)
        if not own:
            self._waiting.pop(caller, None)
