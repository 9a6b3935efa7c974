"""Which requests are for this service: by the name that their Host header gives, and by the page that sent them."""

import re
from ipaddress import ip_address

from jobs.settings import LOOPBACK_HOSTS, Settings

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})  # as a Host header has them
PORT = re.compile(r":\d*$")


class Hosts:
    """The names by which requests may call the service.

    A page of any site can make its own name resolve to 127.0.0.1, and is of our origin then but for its Host header. A
    Host that is an address was resolved by nobody, so every address is answered to where the service listens beyond
    loopback.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = LOOPBACK | {each.lower() for each in (settings.host, *settings.hosts)}
        self._any = "*" in settings.hosts
        self._any_address = settings.host not in LOOPBACK_HOSTS

    def __contains__(self, host: str) -> bool:
        """Whether a Host header's value may be answered; its port does not matter."""
        name = PORT.sub("", host.lower())
        return self._any or name in self.names or (self._any_address and is_address(name))


def is_address(name: str) -> bool:
    """Whether a host is an IP address, as a URL has it."""
    try:
        return bool(ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return False


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of an origin calls its own host. A scheme's own port may be left out."""
    scheme, _, place = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return place != "" and place.removesuffix(port) == host.lower().removesuffix(port)
