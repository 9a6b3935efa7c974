"""Environment variables of settings: their names, refusal of misspelt ones, and masked values for display."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from jobs.contract.errors import SettingsError

PREFIX = "ADM_"
SECRET = re.compile("pass|secret|token|key|user|cred", re.IGNORECASE)  # in the name of a URL's query parameter


class SettingSource(NamedTuple):
    """One line of `adm config`."""

    variable: str
    value: str
    source: str  # "environment" or "default"
    description: str


def variable(name: str) -> str:
    """Name of a field's environment variable."""
    return PREFIX + name.upper()


def refuse_unknown(environment: Mapping[str, str], known: list[str]) -> None:
    """Refuse unknown variables, because pydantic-settings ignores a misspelt one and silently uses the default.

    Raises: SettingsError."""
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = get_close_matches(name.upper(), known, n=1, cutoff=0)
            raise SettingsError(f"{name}: no such setting; the nearest is {near[0]}")


def masked(value: object) -> str:
    """A value for display: tuples separated by commas, addresses without parts that may be secret."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        host = parts.netloc.rpartition("@")[2]
        netloc = f"***@{host}" if "@" in parts.netloc else host
        pairs = ((name, "***" if SECRET.search(name) else each) for name, each in parse_qsl(parts.query))
        return urlunsplit(parts._replace(netloc=netloc, query="&".join(map("=".join, pairs))))
    return "" if value is None else str(value)
