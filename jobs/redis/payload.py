"""The payload of a job: its request as JSON, in a form that older and newer workers can both read.

A rolling upgrade runs workers of two versions on one queue (docs/decisions/0024). A worker runs a job of a newer
version if it understands all fields that affect images; otherwise it leaves the job in the queue to a newer worker.
"""

import json
import zlib
from typing import Any

from pydantic import ValidationError

from jobs.contract.errors import AdmError
from jobs.contract.request import ResolvedRequest
from jobs.contract.samplers import SAMPLER_NOTES

PAYLOAD_VERSION = 1  # of the form: raised when a field that older workers know changes its meaning
REVISION = 2  # of the request: raised when a field or a value is added; tests/former/request.json is its record
ADDED: frozenset[str] = frozenset()  # fields of the request since revision 1
BESIDE_IMAGES = frozenset({"expires_in", "user", "metadata", "webhook_url"})  # fields that no worker acts on
MAX_PAYLOAD_BYTES = 16 << 20  # of a decompressed payload; a few compressed bytes can stand for gigabytes


class BadPayloadError(AdmError):
    """The payload of a job cannot be read as a request."""


class NewerPayloadError(BadPayloadError):
    """A newer version wrote the request, and a part that affects the images is unknown here."""


def payload_of(request: ResolvedRequest) -> dict[str, Any]:
    """The payload of a job. Fields with their default value are omitted, because an older worker may not know them."""
    return {
        "version": PAYLOAD_VERSION,
        "revision": REVISION,
        "beside_images": sorted(BESIDE_IMAGES),
        "request": request.model_dump(exclude_defaults=True),
    }


def read_payload(data: bytes) -> ResolvedRequest:
    """The request in RQ's serialised call.

    Raises: NewerPayloadError for a newer version's request with an unknown part; BadPayloadError for anything else that
    is not a request.
    """
    try:
        call: Any = json.loads(zlib.decompressobj().decompress(data, MAX_PAYLOAD_BYTES))
        _, _, _, payload = call  # RQ's call: function, instance, arguments, keyword arguments
        version, revision = int(payload["version"]), int(payload.get("revision", 0))
        fields, beside = dict(payload["request"]), frozenset(payload.get("beside_images", ()))
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadPayloadError("not a request in JSON") from error
    is_newer = revision > REVISION
    if version > PAYLOAD_VERSION:
        raise NewerPayloadError(f"its payload has version {version}; this program reads version {PAYLOAD_VERSION}")
    if version < PAYLOAD_VERSION:
        raise BadPayloadError(f"its payload has version {version}; this program reads version {PAYLOAD_VERSION}")
    unknown = fields.keys() - ResolvedRequest.model_fields.keys()
    try:
        request = ResolvedRequest.model_validate({name: fields[name] for name in fields.keys() - (unknown & beside)})
    except ValidationError as error:
        if is_newer:
            raise NewerPayloadError(newer_text(revision, _parts(error))) from error
        raise BadPayloadError(f"not a request: {error.error_count()} wrong fields") from error
    if is_newer and (names := _samplers(request) - {each.name for each in SAMPLER_NOTES}):
        raise NewerPayloadError(newer_text(revision, f"sampler {min(names)!r}"))
    return request


def newer_text(revision: int, unknown: str) -> str:
    return f"its request has revision {revision}, and parts unknown to revision {REVISION}: {unknown}"


def fixed_form(request: ResolvedRequest) -> str:
    """A request as text, which stays the same if a later version adds a field that the request does not use."""
    unused = {
        name
        for name in ADDED
        if name in BESIDE_IMAGES or getattr(request, name) == ResolvedRequest.model_fields[name].get_default()
    }
    return request.model_dump_json(exclude=unused)


def _samplers(request: ResolvedRequest) -> set[str]:
    return {request.sampler} | ({request.upsample.sampler} if request.upsample else set())


def _parts(error: ValidationError) -> str:
    """The names of the fields that are not understood, without their values, because the caller wrote those."""
    return ", ".join(sorted({repr(str(each["loc"][0])) if each["loc"] else "inputs" for each in error.errors()}))
