"""A pipeline's classes as callers name them: by name or by index."""

from collections.abc import Sequence
from difflib import get_close_matches

from jobs.contract.pipelines import ClassInfo

MAX_NAMES_SHOWN = 20


def named(classes: Sequence[ClassInfo], name: str) -> bool:
    """Whether a class has this name."""
    return any(each.name == name for each in classes)


def find_class(classes: Sequence[ClassInfo], given: int | str) -> tuple[int | None, str]:
    """The index of a class, and what is wrong with what was given; "" where nothing is."""
    if isinstance(given, str):
        index = next((each.index for each in classes if each.name == given), None)
        return index, "" if index is not None else f"unknown class {given!r}{names_instead(classes, given)}"
    if any(each.index == given for each in classes):
        return given, ""
    last = max((each.index for each in classes), default=None)
    return given, f"unknown class {given}" + ("" if last is None else f"; there are 0 to {last}")


def names_instead(classes: Sequence[ClassInfo], given: str) -> str:
    """What to choose from; of very many names those alone that the given one may be meant for."""
    names = [each.name for each in classes]
    if len(names) <= MAX_NAMES_SHOWN:
        return f"; there are: {', '.join(names)}" if names else "; there are none"
    close = get_close_matches(given.lower(), names, n=3)
    return f"; near: {', '.join(close)}" if close else f"; there are {len(names)}"
