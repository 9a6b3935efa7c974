"""Conditional requests, for what is named by its hash."""

import time
from collections.abc import Callable

from fastapi import Response


def answer_png(read: Callable[[], bytes], sha256: str, kept_until: float, if_none_match: str | None) -> Response:
    """A PNG that never changes as long as it is kept, or 304 for a caller who has it; read is then not called."""
    etag = f'"{sha256}"'
    seconds = max(0, int(kept_until - time.time()))
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={seconds}, immutable"}
    if if_none_match is not None and matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(read(), headers=headers, media_type="image/png")


def matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with any of a list."""
    given = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in given or etag in given
