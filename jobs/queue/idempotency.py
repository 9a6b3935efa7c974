"""The ids of jobs under their callers' idempotency keys, and what tells the body of one call from that of another."""

import hashlib
import json
from uuid import uuid4

from jobs.callers.caller import Caller
from jobs.contract.request import JobRequest

MISMATCH = "this Idempotency-Key was used with another body"


def job_id_of(caller: Caller, idempotency_key: str | None) -> str:
    """Id of a job that is to be queued: drawn at random, or what the caller's key stands for."""
    return uuid4().hex if idempotency_key is None else keyed_id(caller.id, idempotency_key)


def keyed_id(caller: str, idempotency_key: str) -> str:
    """Id of the job that a caller's key stands for."""
    return "i-" + hashlib.sha256(json.dumps([caller, idempotency_key]).encode()).hexdigest()


def body_digest(request: JobRequest) -> str:
    """What tells two bodies apart: the fields given, whatever their order and spacing."""
    text = json.dumps(request.model_dump(exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
