"""Names of webhooks' hosts: slow name servers of one caller delay no other, and cost a bounded number of threads."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from service import resolver
from service.resolver import ResolutionError, Resolver


class NameServers:
    """In place of the system's: names below slow.example are not answered before `answered` is set."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host.endswith(".slow.example"):
            self.answered.wait(300)
        if host.endswith(".none.example"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::7%eth0", port, 0, 2))]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    servers = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", servers.getaddrinfo)
    yield servers
    servers.answered.set()


def test_slow_names_of_one_caller_delay_no_other_and_take_no_more_threads_than_its_share(servers: NameServers) -> None:
    async def scenario() -> None:
        names = Resolver()
        slow = [asyncio.create_task(names.addresses(f"{number}.slow.example", 80, "ann", 8)) for number in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(ResolutionError, match="other names of the same caller"):
            await names.addresses("a.example", 80, "ann", 8)
        for number in range(20):
            assert await names.addresses(f"{number}.example", 80, "bob", 8) == [ip_address("fe80::7")]
        servers.answered.set()
        assert all(await asyncio.gather(*slow))
        assert await names.addresses("a.example", 80, "ann", 8)

    asyncio.run(scenario())


def test_name_that_is_waited_for_no_longer_counts_until_its_thread_ends(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "RESOLVE_SECONDS", 0.01)

    async def scenario() -> None:
        names = Resolver()
        with pytest.raises(ResolutionError, match="not resolved within"):
            await names.addresses("a.slow.example", 80, "ann", 1)
        with pytest.raises(ResolutionError, match="other names of the same caller"):
            await names.addresses("b.slow.example", 80, "ann", 1)
        assert servers.asked == ["a.slow.example"]
        servers.answered.set()
        while names._running:  # the thread reports its end to the event loop
            await asyncio.sleep(0)
        monkeypatch.setattr(resolver, "RESOLVE_SECONDS", 60)
        assert await names.addresses("b.slow.example", 80, "ann", 1)

    asyncio.run(scenario())


def test_name_that_does_not_exist_is_an_error_and_takes_no_share(servers: NameServers) -> None:
    async def scenario() -> None:
        names = Resolver()
        for _ in range(3):
            with pytest.raises(ResolutionError, match="cannot be resolved"):
                await names.addresses("a.none.example", 80, "ann", 1)

    asyncio.run(scenario())


def test_port_that_no_machine_has_leaves_the_caller_its_share() -> None:
    """A receiver may name one in a redirect; the system's call raises an error of another kind then."""

    async def scenario() -> None:
        names = Resolver()
        for _ in range(2):
            with pytest.raises(ResolutionError, match="cannot be resolved"):
                await names.addresses("127.0.0.1", 10**20, "ann", 1)

    asyncio.run(scenario())
