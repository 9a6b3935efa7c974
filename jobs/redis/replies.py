"""Reads replies of Redis that may contain foreign entries, which other programs or older versions wrote."""

import re
from typing import Any

from redis.exceptions import ResponseError

from jobs.redis.reading import ReadPipeline


def is_wrong_type(error: object) -> bool:
    """Return whether a command failed because its key has the wrong type."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def answers(pipe: ReadPipeline) -> list[Any]:
    """Run a pipeline; return the answers of `pipe.execute`, with None for keys of the wrong type."""
    found = []
    for each in pipe.execute(raise_on_error=False):
        if isinstance(each, Exception) and not is_wrong_type(each):
            raise each
        found.append(None if isinstance(each, Exception) else each)
    return found


def matched(pattern: re.Pattern[str], entry: bytes) -> re.Match[str] | None:
    """Parse an entry of a list or set by a pattern; return None if it does not match."""
    return pattern.fullmatch(entry.decode(errors="replace"))
