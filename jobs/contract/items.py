"""The body of POST /v1/jobs that asks for several jobs at once: `items`, and beside them what they have in common."""

import json
from typing import Annotated

from pydantic import Field

from jobs.contract.request import JobRequest

MAX_ITEMS = 64  # jobs of a call: they are queued in one transaction, during which Redis serves nobody else


class JobItems(JobRequest):
    """Several jobs. A field beside `items` holds for every item that does not have the field itself."""

    items: Annotated[list[JobRequest], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="requests, each of which becomes a job; `{}` is one with the common fields alone. All of them are "
        "queued, or none"
    )

    @property
    def requests(self) -> list[JobRequest]:
        """The request of each job."""
        common = {name: getattr(self, name) for name in self.model_fields_set - {"items"}}
        return [
            each.model_copy(update={name: common[name] for name in common.keys() - each.model_fields_set})
            for each in self.items
        ]


def parse_body(body: bytes) -> JobRequest | JobItems:
    """Read the body of a POST. Raises: InvalidRequestError, one entry a wrong field."""
    return JobItems.parse(body) if has_items(body) else JobRequest.parse(body)


def has_items(body: bytes) -> bool:
    """Whether a body is an object with `items`; the first line spares most bodies a parser of their own."""
    if b"items" not in body and b"\\" not in body:
        return False
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):  # the validation says what is wrong with it
        return False
    return isinstance(given, dict) and "items" in given
