"""Checks whether a request is meant for this service, by its Host header and its Origin header."""

import re
from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.settings import LOOPBACK_HOSTS, Settings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})  # in the form of a Host header
PORT = re.compile(r":\d*$")


class Hosts:
    """The names by which requests may call the service.

    The owner of any site can make its host name resolve to 127.0.0.1 (DNS rebinding); then only the Host header shows
    that a request of its page is not meant for us. A Host that is an IP address was not resolved, so every address is
    accepted if the service listens beyond loopback.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = LOOPBACK | {each.lower() for each in (settings.host, *settings.hosts)}
        self._any = "*" in settings.hosts
        self._any_address = settings.host not in LOOPBACK_HOSTS

    def __contains__(self, host: str) -> bool:
        """Return whether a Host header's value is accepted; the port is ignored."""
        name = PORT.sub("", host.lower())
        return self._any or name in self.names or (self._any_address and is_address(name))


class CrossOrigin(CORSMiddleware):
    """Lets pages of the origins in ADM_CORS_ORIGINS call the service, but only by its own host names.

    A request for another Host gets none of the headers that a page needs. A preflight for another Host is passed on,
    and refused like any other request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, exposed: Collection[str]) -> None:
        """`exposed`: the headers of answers that pages may read."""
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=exposed,
        )
        self._hosts = Hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Headers(scope=scope).get("host", "") not in self._hosts:
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def is_address(name: str) -> bool:
    """Return whether a host is an IP address in the form of a URL."""
    try:
        return bool(ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return False


def is_same_origin(origin: str, host: str) -> bool:
    """Return whether an origin is that of the called host. The default port of a scheme may be omitted."""
    scheme, _, place = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return place != "" and place.removesuffix(port) == host.lower().removesuffix(port)
