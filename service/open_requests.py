"""Counts the requests of each caller that are open, and leaves connections to others."""

from collections import Counter
from contextlib import ExitStack

from starlette.types import Scope

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.settings import Settings
from service.problems import RETRY_AFTER_SECONDS
from vocabulary.counts import counted

AT_END = "adm.at_end"  # key in a request's scope: an ExitStack that is closed when its answer has been sent, or dropped


class OpenRequests:
    """The open requests by caller, streams and waiting answers included; for one event loop.

    Behind a proxy all callers have the proxy's address, so without this count one caller could hold all connections of
    that address.
    """

    def __init__(self, settings: Settings) -> None:
        all_of_them, of_address = settings.max_connections, settings.max_connections_per_address
        self._most = max(1, min(all_of_them, of_address) * 3 // 4)
        self._setting = f"ADM_MAX_CONNECTIONS{'_PER_ADDRESS' if of_address < all_of_them else ''}"
        self._open = Counter[str]()

    def add(self, caller: str, scope: Scope) -> None:
        """Count a request until its end. Raises: RefusedError if its caller has too many open."""
        if self._open[caller] >= self._most:
            raise RefusedError(
                ErrorKind.UNAVAILABLE,
                f"you have {counted(self._most, 'request')} open, the limit (three quarters of {self._setting})",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._open[caller] += 1
        at_end: ExitStack = scope[AT_END]
        at_end.callback(self._remove, caller)

    def _remove(self, caller: str) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]
