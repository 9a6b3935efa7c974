"""Types of settings with special forms: comma-separated lists, hosts, origins, networks, secrets, addresses."""

import base64
import re
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode
from redis.connection import parse_url

HOST_NAME = re.compile(r"\*|[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")  # as browsers send it
WEBHOOK_SECRET = re.compile(r"whsec_(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?")


def split(value: Any) -> Any:
    """Split a text at its commas."""
    return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value


def check_host(name: str) -> str:
    if not HOST_NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be a name, such as images.example, without scheme, port and path")
    return name


def check_origin(origin: str) -> str:
    if not ORIGIN.fullmatch(origin):
        raise ValueError(f"{origin!r} must be a scheme and a host in lower case, such as https://app.example")
    return origin


def check_network(address: str) -> str:
    ip_network(address, strict=False)
    return address


def check_webhook_secrets(value: SecretStr) -> SecretStr:
    for secret in value.get_secret_value().split(","):
        if not WEBHOOK_SECRET.fullmatch(secret) or not 24 <= len(key_of(secret)) <= 64:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
    return value


def check_redis_url(url: str) -> str:
    parse_url(url)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
    return url


def check_store(address: str) -> str:
    if "://" in address and not re.match("s3://[^/]", address):
        raise ValueError("must be a folder or s3://bucket/prefix")
    return address


def key_of(secret: str) -> bytes:
    """The key in a secret for webhooks."""
    return base64.b64decode(secret.removeprefix("whsec_") + "==")  # its padding may be left out


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(check_host)], ...], NoDecode, BeforeValidator(split)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(check_origin)], ...], NoDecode, BeforeValidator(split)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(check_network)], ...], NoDecode, BeforeValidator(split)]
WebhookSecrets = Annotated[SecretStr, AfterValidator(check_webhook_secrets)]
RedisUrl = Annotated[str, AfterValidator(check_redis_url)]
StoreAddress = Annotated[str, AfterValidator(check_store)]
