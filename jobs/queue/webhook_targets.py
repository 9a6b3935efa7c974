"""Allowed targets of webhooks: public addresses, and those that a setting allows."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.settings import Settings

Address = IPv4Address | IPv6Address
# IPv6 addresses that represent an IPv4 address, which a gateway of the machine's network would reach.
TRANSLATED = tuple(map(IPv6Network, ("::/96", "64:ff9b::/96")))
# Special-use ranges (IANA's registries) that ipaddress treats as global in some versions of Python.
SPECIAL = tuple(
    map(ip_network, ("192.0.0.0/24", "fec0::/10", "::ffff:0:0:0/96", "64:ff9b:1::/48", "3fff::/20", "5f00::/16"))
)
PLATFORM = ip_address("168.63.129.16")  # Azure's, in the public range; virtual machines read secrets from it


class WebhookTargets:
    """Decides which addresses are allowed, after names are resolved."""

    def __init__(self, networks: Sequence[str]) -> None:
        """`networks`: those that are allowed in addition to public addresses."""
        self._allowed = [ip_network(each, strict=False) for each in networks]

    def allows(self, address: Address) -> bool:
        """Return whether a connection to the address may be made."""
        meant = plain(address)
        if any(each in network for each in (address, meant) for network in self._allowed):
            return True
        if any(each in network for each in (address, meant) for network in SPECIAL):
            return False
        return meant.is_global and not meant.is_multicast and meant != PLATFORM


def plain(address: Address) -> Address:
    """Return the address that is actually reached: for an IPv6 address that maps to IPv4, the IPv4 address."""
    if isinstance(address, IPv4Address):
        return address
    if (inner := address.ipv4_mapped or address.sixtofour) is not None:
        return inner
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in TRANSLATED):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def check_webhook(url: str | None, settings: Settings) -> None:
    """Refuse a URL to which nothing would ever be delivered; names are resolved and checked when a webhook is sent.

    Raises: InvalidRequestError.
    """
    if url is None:
        return
    reason = ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        reason = "is not a URL"
    else:
        if settings.webhook_secret is None:
            reason = "this service sends no webhooks: ADM_WEBHOOK_SECRET is not set"
        elif port == 0:
            reason = "is not a URL to send to: nothing listens at port 0"
        elif "" in (host := parts.hostname or "").removesuffix(".").split("."):
            reason = "is not a URL: its host has an empty label"
        elif is_no_address(host):
            reason = "is not a URL: its host ends in a number, and is no address"
        elif not reaches(host, WebhookTargets(settings.webhook_networks)):
            reason = "is an address that is not allowed for webhooks (ADM_WEBHOOK_NETWORKS allows networks)"
    if reason:
        raise InvalidRequestError([FieldError("/webhook_url", reason)])


def is_no_address(host: str) -> bool:
    """Return whether a host looks like an IPv4 address and is none, such as 1.2.3.999 (WHATWG URL, section 3.5)."""
    last = host.removesuffix(".").rpartition(".")[2]
    if not (last.isascii() and last.isdecimal()) and not re.fullmatch("0x[0-9a-f]*", last):
        return False
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def host_of(url: str) -> str:
    """The host of a URL in a record; empty for one that cannot be read."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def reaches(host: str, targets: WebhookTargets) -> bool:
    """Return whether a host may be allowed. A name is accepted here and checked when it is resolved."""
    try:
        return targets.allows(ip_address(host))
    except ValueError:
        return True
