"""Limits and pauses of retries, while the service does not answer or has no room."""

import random
import time
from collections.abc import Callable
from typing import NamedTuple

import httpx2

from adm_client.errors import RefusedError, UnreachableError

TOO_MANY_REQUESTS = 429
ASK_LATER = frozenset({TOO_MANY_REQUESTS, 502, 503, 504})
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 60.0


class Patience(NamedTuple):
    """Seconds for which a call is repeated: without an answer, and while the service asks for a later retry."""

    silent_seconds: float = 30.0
    busy_seconds: float = 120.0


USUAL = Patience()


class Attempts:
    """The attempts at one call."""

    def __init__(self, patience: Patience, on_wait: Callable[[str], None]) -> None:
        """`on_wait` gets the reason of a wait, and "" at its end."""
        self._patience, self._on_wait = patience, on_wait
        self._number = 0
        self._silent_since: float | None = None
        self._busy_since: float | None = None

    def after_error(self, error: httpx2.TransportError, *, repeatable: bool) -> float:
        """Seconds to wait if no answer came. Raises: UnreachableError after `patience`, or if a retry is not safe."""
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        harmless = repeatable or isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        if not harmless or now - self._silent_since >= self._patience.silent_seconds:
            raise UnreachableError(f"the service does not answer ({str(error) or type(error).__name__})") from error
        self._on_wait("the service does not answer")
        return self._backoff()

    def after_refusal(self, response: httpx2.Response) -> float:
        """Seconds to wait if the service has no room.

        Raises: RefusedError after `patience`, and for a call above the whole quota, which would never succeed.
        """
        now = time.monotonic()
        self._silent_since, self._busy_since = None, self._busy_since or now
        asked, refused = response.headers.get("Retry-After"), RefusedError.of(response)
        if response.status_code == TOO_MANY_REQUESTS and asked is None:
            raise refused
        pause = asked_pause(asked) or self._backoff()
        if now - self._busy_since + pause > self._patience.busy_seconds:
            raise refused
        self._on_wait(f"the service answers {refused}")
        return pause

    def answered(self) -> None:
        """Note that the service has answered the call."""
        if self._number or self._busy_since is not None:
            self._on_wait("")
        self._number, self._silent_since, self._busy_since = 0, None, None

    def _backoff(self) -> float:
        self._number += 1
        return min(MOST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self._number - 1)) * random.uniform(0.75, 1.0)


def asked_pause(retry_after: str | None) -> float | None:
    """The seconds in Retry-After, within limits; None without it, and for a date, which our service never sends."""
    if retry_after is None or not retry_after.isdecimal():
        return None
    return min(max(float(retry_after), 1.0), MOST_PAUSE_SECONDS)
