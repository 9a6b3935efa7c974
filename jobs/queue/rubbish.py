"""Telling rubbish in Redis from what we wrote: other programs, older versions and broken disks write there too.

What is no job's is logged and passed over; a damaged job is `jobs.queue.mending`'s.
"""

import re
from typing import Any

from redis.client import Pipeline
from redis.exceptions import ResponseError

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
INDEX_MEMBER = re.compile(r"(\d{16})-([A-Za-z0-9_-]{1,128})")
EXECUTION = re.compile(r"([A-Za-z0-9_-]{1,128}):([0-9a-f]{32})")


def is_wrong_type(error: object) -> bool:
    """Whether a command failed because its key is of another type than the command is for."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def answers(pipe: Pipeline) -> list[Any]:
    """What `pipe.execute` returns, with None where a key is of the wrong type."""
    found = []
    for each in pipe.execute(raise_on_error=False):
        if isinstance(each, Exception) and not is_wrong_type(each):
            raise each
        found.append(None if isinstance(each, Exception) else each)
    return found


def matched(pattern: re.Pattern[str], entry: bytes) -> re.Match[str] | None:
    """An entry of a list or set as what it should be; None for what it cannot be."""
    return pattern.fullmatch(entry.decode(errors="replace"))
