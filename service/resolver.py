"""Resolves host names, each in a thread of its own, within a time limit and a limit for each caller.

A lookup by the system cannot be cancelled: its thread lasts until the name servers have answered or the lookup's own
time limit is over, often half a minute. In a pool of threads, the slow names of one caller would delay all others.
"""

import asyncio
import socket
from collections import Counter
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Thread

RESOLVE_SECONDS = 5.0  # longest wait for a name


class ResolutionError(Exception):
    """A name has not been resolved; the message is one line."""


class Resolver:
    """Resolves names for any number of callers; for one event loop."""

    def __init__(self) -> None:
        self._running = Counter[str]()  # lookups whose thread has not ended, by caller

    async def addresses(self, host: str, port: int, caller: str, most: int) -> list[IPv4Address | IPv6Address]:
        """All addresses of a host.

        most: lookups of the caller whose threads may exist at once, including those that it no longer waits for.
        Raises: ResolutionError.
        """
        if self._running[caller] >= most:
            raise ResolutionError("other names of the same caller are still being resolved")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def look_up() -> None:
            addresses = list[str]()
            try:
                with suppress(OSError, UnicodeError, OverflowError):  # the last for a port that is no C integer
                    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                    addresses = [str(each[4][0]) for each in answers]
            finally:
                with suppress(RuntimeError):  # the event loop has been closed meanwhile
                    loop.call_soon_threadsafe(end, addresses)

        def end(addresses: list[str]) -> None:
            self._running[caller] -= 1
            self._running += Counter()  # drops callers whose count is 0
            if not found.done():
                found.set_result(addresses)

        try:
            Thread(target=look_up, name="resolver", daemon=True).start()
        except RuntimeError as error:
            raise ResolutionError("no thread can be started to resolve the receiver's name") from error
        self._running[caller] += 1
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                addresses = await found
        except TimeoutError as error:
            raise ResolutionError(f"the receiver's name is not resolved within {RESOLVE_SECONDS:g} s") from error
        if not addresses:
            raise ResolutionError("the receiver's name cannot be resolved")
        return [ip_address(each.partition("%")[0]) for each in addresses]
