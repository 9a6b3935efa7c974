"""Every error of the client.

ClientError
  RefusedError       the service refused a call, for the reason in `status` and `kind`; `errors` name wrong fields
  SettingError       no call can be made with the given URL or key
  UnreachableError   the service has not answered within the client's patience
  JobFailedError     a job has ended without its images; `job` is its last state
  DamagedError       the bytes that arrived are not those that the service announced
"""

from collections.abc import Mapping, Sequence

import httpx2

from adm_client.models import JobState

KEY_STATUSES = frozenset({401, 403})


class ClientError(Exception):
    """Base of all errors that this package raises."""


class SettingError(ClientError):
    pass


class UnreachableError(ClientError):
    pass


class DamagedError(ClientError):
    pass


class RefusedError(ClientError):
    """A call that the service refused.

    kind: the last part of the problem's type, such as "queue-full"; "" without a type.
    errors: {"pointer", "detail"} of each wrong field.
    """

    def __init__(
        self, status: int, kind: str, detail: str, errors: Sequence[Mapping[str, str]], *, has_key: bool = True
    ) -> None:
        hint = ""
        if status in KEY_STATUSES:
            hint = " (the key was taken from api_key= or ADM_API_KEY)" if has_key else " (set api_key= or ADM_API_KEY)"
        super().__init__(f"{status}: {detail}{hint}")
        self.status, self.kind, self.detail, self.errors = status, kind, detail, errors

    @classmethod
    def of(cls, response: httpx2.Response) -> "RefusedError":
        """Parse an error answer: RFC 9457 from the service, or any form from a proxy before it."""
        has_key = "Authorization" in response.request.headers
        try:
            problem = response.json()
            kind = str(problem.get("type", "")).rpartition(":")[2]
            detail, errors = str(problem["detail"]), problem.get("errors") or ()
            found = cls(response.status_code, kind, detail, errors, has_key=has_key)
        except (ValueError, KeyError, TypeError, AttributeError):
            found = cls(response.status_code, "", response.reason_phrase, (), has_key=has_key)
        return found


class JobFailedError(ClientError):
    def __init__(self, job: JobState) -> None:
        reason = job.error.detail if job.error is not None else f"it was {job.status}"
        super().__init__(f"job {job.id}: {reason}")
        self.job = job
