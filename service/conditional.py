"""Conditional requests: a caller who names the hash of what it holds is not sent it again."""

import hashlib
from collections.abc import Awaitable, Callable

from fastapi import Response


async def answer_png(
    read: Callable[[], Awaitable[bytes]], sha256: str, kept_seconds: float, if_none_match: str | None
) -> Response:
    """A PNG that never changes as long as it is kept, or 304 for a caller who has it; read is then not called."""
    seconds = max(0, int(kept_seconds))
    headers = {"ETag": f'"{sha256}"', "Cache-Control": f"private, max-age={seconds}, immutable"}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await read(), headers=headers, media_type="image/png")


def answer_json(body: bytes, if_none_match: str | None) -> Response:
    """JSON that changes seldom, to be asked for again each time; 304 for a caller who has it."""
    headers = {"ETag": etag_of(body), "Cache-Control": "no-cache"}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def etag_of(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with any of a list."""
    given = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    return "*" in given or etag in given
