"""The body of POST /v1/jobs for several jobs at once: `items`, and the fields that they have in common."""

from typing import Annotated

from pydantic import Field

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.request import JobRequest

MAX_ITEMS = 64  # jobs per call; they are queued in one transaction, during which Redis runs no other command


class JobItems(JobRequest):
    """Several jobs. A field beside `items` applies to every item that does not have the field itself."""

    items: Annotated[list[JobRequest], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        description="requests, each of which becomes a job; `{}` is one with only the common fields. All of them are "
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

    def locate(self, place: int, error: InvalidRequestError) -> list[FieldError]:
        """The wrong fields of one item, with pointers into the call's body."""
        return [FieldError(f"/items/{place}{each.pointer}", each.detail) for each in error.errors]
