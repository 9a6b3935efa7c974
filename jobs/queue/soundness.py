"""Which fields of a job's hash cannot be read; of all others a Record's properties raise nothing.

The payload is not among them, no checkpoint and no progress: what reads these deals with all that they may be.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, TypeAdapter
from rq.job import JobStatus as RqStatus

from jobs.callers.keyring import CALLER_ID
from jobs.contract.job import ImageRecord, JobError, Usage
from jobs.contract.request import PRIORITIES
from jobs.queue import keys
from jobs.queue.deaths import Deaths
from jobs.queue.rubbish import JOB_ID

LATEST = 1e10  # seconds; their microseconds fill the members of the indexes
MOST = 2**40  # of what is counted, so that Redis can add it up
QUEUE = re.compile(rf"{keys.QUEUE_PREFIX}.+:(?:{'|'.join(PRIORITIES)})", re.DOTALL)
TOKEN = re.compile(r"[0-9a-f]{32}")
FLAG = re.compile("1")
WEBHOOK_URL = re.compile(r"https?://[!-~]+")
STAGE = Annotated[str, StringConstraints(pattern="^[a-z0-9_-]{1,32}$")]  # a newer version may have more of them
WORK = TypeAdapter(dict[STAGE, Annotated[int, Field(ge=0, le=MOST, strict=True)]])
IMAGES = TypeAdapter(list[ImageRecord])
RESULTS = TypeAdapter(dict[str, Any])
JOB_IDS = TypeAdapter(list[Annotated[str, Field(pattern=f"^{JOB_ID.pattern}$")]])


def damage_of(fields: Mapping[bytes, bytes]) -> list[str]:
    """Names of the fields that cannot be read."""
    return [name for name in READERS if not is_readable(name, fields.get(name.encode()))]


def is_readable(name: str, value: bytes | None) -> bool:
    """Whether a field is as it should be, also where it is not there."""
    if not value:
        return name not in REQUIRED
    try:
        READERS[name](value.decode())
    except ValueError:  # also that of JSON, of pydantic and of UTF-8
        return False
    return True


def matching(pattern: re.Pattern[str]) -> Callable[[str], None]:
    def read(text: str) -> None:
        if not pattern.fullmatch(text):
            raise ValueError(text)

    return read


def at_most(most: float) -> Callable[[str], None]:
    def read(text: str) -> None:
        if not 0 <= float(text) <= most:  # NaN is neither
            raise ValueError(text)

    return read


REQUIRED = ("status", "origin")
READERS: Mapping[str, Callable[[str], object]] = {
    "status": RqStatus,
    "origin": matching(QUEUE),
    "adm_created_at": at_most(LATEST),
    "adm_expires_at": at_most(LATEST),
    "adm_started_at": at_most(LATEST),
    "adm_ended_at": at_most(LATEST),
    "adm_reckoned_seconds": at_most(LATEST),
    "adm_attempt": at_most(MOST),
    "adm_worker_deaths": Deaths.model_validate_json,
    "retries_left": at_most(MOST),
    "adm_cancel": matching(FLAG),
    "adm_expired": matching(FLAG),
    "adm_token": matching(TOKEN),
    "adm_given_back_by": matching(TOKEN),
    "adm_work": WORK.validate_json,
    "adm_images": IMAGES.validate_json,
    "adm_error": JobError.model_validate_json,
    "adm_usage": Usage.model_validate_json,
    "adm_results": RESULTS.validate_json,
    "adm_class_name": str,
    "adm_numerics": str,
    "adm_body": str,
    "adm_items": JOB_IDS.validate_json,
    "adm_request_id": str,
    "adm_webhook_url": matching(WEBHOOK_URL),
    "adm_caller": matching(CALLER_ID),
    "adm_cost_ms": at_most(MOST),
    "adm_share": at_most(MOST),
    "adm_turn": at_most(MOST),
    "worker_name": str,
}
