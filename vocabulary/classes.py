"""Finds a pipeline's classes by name or by index."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property

MAX_NAMES_SHOWN = 20


class UnknownClassError(ValueError):
    """A pipeline has no such class. `instead`: the rest of the sentence, which lists the classes that there are."""

    def __init__(self, given: int | str, instead: str) -> None:
        super().__init__(f"unknown class {given!r}{instead}")
        self.given, self.instead = given, instead


class ClassNames:
    """The names of a pipeline's classes, by index."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in self._names.items()}

    def find(self, given: int | str) -> int:
        """Return the index of a class that is given by index or by name. Raises: UnknownClassError."""
        if isinstance(given, int):
            if given not in self._names:
                raise UnknownClassError(given, f"; there are 0 to {max(self._names)}" if self._names else "")
            return given
        if given not in self._indices:
            raise UnknownClassError(given, self._names_instead(given))
        return self._indices[given]

    def parse(self, text: str) -> int:
        """Return the index of a class that is given as text: by its name, or else by its index.

        Raises: UnknownClassError.
        """
        is_index = text.isascii() and text.isdecimal() and text not in self._indices
        return self.find(int(text) if is_index else text)

    def _names_instead(self, given: str) -> str:
        """The existing names; if there are very many, only similar ones."""
        names = list(self._names.values())
        if len(names) <= MAX_NAMES_SHOWN:
            return f"; there are: {', '.join(names)}" if names else "; there are none"
        # only these are compared, because a comparison is slow and callers can cause many
        alike = [name for name in names if name[0] == given[:1].lower()]
        close = get_close_matches(given.lower(), alike, n=3)
        return f"; near: {', '.join(close)}" if close else f"; there are {len(names)} classes"
