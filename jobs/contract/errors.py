"""All errors of the service and the workers.

AdmError
  SettingsError              a variable of the environment is wrong; the program must not start
    TakenNameError           ... because a living worker has the requested name
  RefusedError               a call cannot be done as requested; `kind` is the reason, and HTTP has a status for each
    OverQuotaError           ... because the call exceeds a quota of the caller
    InvalidRequestError      ... because fields of the request are wrong
  KeyringError               a key cannot be made or changed as asked
  UnavailableError           Redis or the image store cannot be reached just now
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

SETTINGS_STATUS = 2  # exit status of a program with wrong settings: another start would fail too


MAX_ERRORS, MAX_POINTER, MAX_DETAIL = 16, 200, 500  # limits of an answer, because callers choose the fields in it


class ErrorKind(StrEnum):
    """Why a call was refused."""

    INVALID_REQUEST = "invalid-request"
    OVER_QUOTA = "over-quota"
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch"
    UNKNOWN_JOB = "unknown-job"
    UNKNOWN_GRID = "unknown-grid"
    UNKNOWN_MODEL = "unknown-model"
    UNKNOWN_SWEEP = "unknown-sweep"
    UNKNOWN_IMAGE = "unknown-image"
    UNKNOWN_FILE = "unknown-file"
    UNKNOWN_RUN = "unknown-run"
    UNKNOWN_WORKER = "unknown-worker"
    UNKNOWN_CHANGE = "unknown-change"
    IMAGE_NOT_READY = "image-not-ready"
    JOB_ENDED = "job-ended"
    QUEUE_FULL = "queue-full"
    FILES_FULL = "files-full"
    UNAVAILABLE = "unavailable"


class FailureKind(StrEnum):
    """Why a job failed."""

    WORKER_LOST = "worker-lost"  # workers that ran only this job died at its furthest step (`worker_deaths.py`)
    BAD_PAYLOAD = "bad-payload"  # its record in Redis cannot be read
    STEP_FAILED = "step-failed"  # the engine raised for this job's rows
    STORE_FAILED = "store-failed"  # its images could not be stored
    FILE_GONE = "file-gone"  # a picture that it starts from was deleted
    NOT_OFFERED = "not-offered"  # the worker's pipeline cannot do what the job asks


class FieldError(NamedTuple):
    """One wrong field: a JSON pointer (RFC 6901), "" for the whole body, and what is wrong with it."""

    pointer: str
    detail: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}" if self.pointer else self.detail


class AdmError(Exception):
    """Base of all errors that this package raises."""


class SettingsError(AdmError):
    """A setting is unknown or wrong; the message names the variable and fits one line."""


class TakenNameError(SettingsError):
    """A living worker has the name, perhaps only for a short time."""


class KeyringError(AdmError):
    """A key cannot be made or changed as asked; the message fits one line."""


class UnavailableError(AdmError):
    """Something the program depends on cannot be reached just now."""


class RefusedError(AdmError):
    """A call that cannot be done as requested; nothing was changed."""

    def __init__(self, kind: ErrorKind, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


class OverQuotaError(RefusedError):
    """A call that exceeds a quota of its caller; retry_after_seconds is None if a later call would exceed it too."""

    def __init__(
        self,
        detail: str,
        *,
        policy: str,
        quota: int,
        remaining: int,
        window_seconds: int | None = None,
        retry_after_seconds: float | None,
    ) -> None:
        super().__init__(ErrorKind.OVER_QUOTA, detail, retry_after_seconds=retry_after_seconds)
        self.policy, self.quota, self.remaining, self.window_seconds = policy, quota, remaining, window_seconds


class InvalidRequestError(RefusedError):
    """A request with wrong fields, each with its pointer; at most MAX_ERRORS of them."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        shown = [FieldError(each.pointer[:MAX_POINTER], each.detail[:MAX_DETAIL]) for each in errors[:MAX_ERRORS]]
        if len(errors) > MAX_ERRORS:
            shown.append(FieldError("", f"and {len(errors) - MAX_ERRORS} more"))
        super().__init__(ErrorKind.INVALID_REQUEST, "; ".join(map(str, shown)))
        self.errors = tuple(shown)
