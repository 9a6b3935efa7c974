"""Conditional requests: 304 for a caller that has the present version."""

import hashlib
from collections.abc import Awaitable, Callable

from fastapi import Response


async def answer_png(
    read: Callable[[], Awaitable[bytes]], sha256: str, kept_seconds: float, if_none_match: str | None
) -> Response:
    """Answer with a PNG, which never changes while kept; with 304, without calling `read`, if the caller has it."""
    return await answer_picture(read, f'"{sha256}"', "image/png", kept_seconds, if_none_match)


async def answer_picture(
    read: Callable[[], Awaitable[bytes]],
    etag: str,
    media_type: str,
    kept_seconds: float,
    if_none_match: str | None,
    **more: str,
) -> Response:
    """Like `answer_png`, for any format and with more headers."""
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={max(0, int(kept_seconds))}, immutable", **more}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(await read(), headers=headers, media_type=media_type)


def answer_json(body: bytes, if_none_match: str | None) -> Response:
    """Answer with JSON, which caches must revalidate because it may change; with 304 if the caller has it."""
    headers = {"ETag": etag_of(body), "Cache-Control": "no-cache"}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def etag_of(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Return whether If-None-Match is `*` or lists the ETag, by weak comparison (RFC 9110, 13.1.2)."""
    given = [each.strip() for each in (if_none_match or "").split(",")]
    return given == ["*"] or etag.removeprefix("W/") in [each.removeprefix("W/") for each in given]
