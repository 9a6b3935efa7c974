"""The request headers that routes read by themselves: Idempotency-Key and Prefer.

They are not parameters of the routes, because FastAPI takes longer to validate a header than a route takes to read it.
"""

import re
from typing import Any

from starlette.requests import Request

from jobs.contract.errors import FieldError, InvalidRequestError

MAX_WAIT_SECONDS = 60
MAX_KEY_LENGTH = 255
PREFERENCE = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')  # a comma within quotes does not separate
PREFERRED_WAIT = re.compile(r'\s*wait\s*=\s*("?)(\d{1,99})\1\s*(?:;.*)?', re.IGNORECASE)


def parameter(name: str, description: str, **limits: int) -> dict[str, Any]:
    """A header in the OpenAPI document."""
    schema = {"type": "string", **limits}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


KEY = parameter(
    "Idempotency-Key", "calls with the same key and body return the same job", minLength=1, maxLength=MAX_KEY_LENGTH
)
PREFER = parameter("Prefer", "`wait=N`: answer when the job has ended, or after N s")


def idempotency_key(request: Request) -> str | None:
    """The request's Idempotency-Key. Raises: InvalidRequestError if it is empty or too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError([FieldError("/Idempotency-Key", f"must have 1 to {MAX_KEY_LENGTH} characters")])
    return key


def preferred_wait(request: Request) -> int | None:
    """Seconds of RFC 7240's `wait`, at most MAX_WAIT_SECONDS; an invalid preference is ignored."""
    for preference in PREFERENCE.findall(", ".join(request.headers.getlist("prefer"))):
        if found := PREFERRED_WAIT.fullmatch(preference):
            return min(int(found[2]), MAX_WAIT_SECONDS)
    return None
