"""Makes the request that reproduces an image from the text in its PNG."""

import json
from typing import Any

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.kinds import FIELDS
from jobs.contract.request import JobRequest

CHUNK = "adm-serve"  # keyword of the PNG text chunk that `worker.png` writes


def request_of(text: bytes) -> JobRequest:
    """Return the request that reproduces the image of a PNG chunk, and no other image if its kind allows that.

    Raises: InvalidRequestError for text that this version of the project does not write.
    """
    try:
        facts: Any = json.loads(text)
        kind = facts["kind"]
        given = {name: facts.get(name) for name in FIELDS[kind] | {"kind", "model"}}
        given = {name: value for name, value in given.items() if value not in (None, [])}
        if "first_index" in FIELDS[kind]:
            given["first_index"] = facts["image_index"]
        elif kind == "interpolate":
            given["n"] = facts["frames"]
        return JobRequest.model_validate(given)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = "was not made by this version of the service: its text cannot be read as a request"
        raise InvalidRequestError([FieldError("/file", detail)]) from error
