"""The recorded form of a stored request: it cannot change without a new revision, by which other versions see it."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest

from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.samplers import SAMPLER_NOTES
from jobs.redis.payload import ADDED, BESIDE_IMAGES, REVISION, BadPayloadError, fixed_form, payload_of, read_payload
from tests.jobs.samples import DEMO

RECORD = Path(__file__).parents[1] / "former/request.json"


def stored_form() -> dict[str, Any]:
    """Everything that decides whether an older version can read a request."""
    return {
        "revision": REVISION,
        "added": sorted(ADDED),
        "samplers": sorted(each.name for each in SAMPLER_NOTES),
        "schema": ResolvedRequest.model_json_schema(),
    }


def written() -> str:
    return json.dumps(stored_form(), indent=1, sort_keys=True) + "\n"


def test_stored_request_is_the_recorded_one_of_its_revision() -> None:
    """After a change: raise REVISION, name new fields in ADDED, and run python -m tests.jobs.test_payload."""
    assert written() == RECORD.read_text()


def test_fields_that_are_named_exist_and_have_defaults() -> None:
    fields = ResolvedRequest.model_fields
    assert fields.keys() >= BESIDE_IMAGES | ADDED
    assert not [name for name in ADDED if fields[name].is_required()]


def test_payload_leaves_out_what_has_its_default_and_is_read_back_the_same() -> None:
    request = resolve(JobRequest.parse(b'{"class_label": 3, "webhook_url": "https://a.example/"}'), DEMO, lambda: 1)
    stored = payload_of(request)["request"]
    assert "webhook_url" in stored
    assert not {"first_index", "class_weights", "thresholding"} & stored.keys()
    assert ResolvedRequest.model_validate(stored) == request


@pytest.mark.parametrize(
    "damage",
    [
        {"version": math.inf},
        {"revision": -math.inf},
        {"version": math.nan},
        {"request": {"class_label": None, "class_weights": {"x": 1.0}}},
        {"request": {"user": "\ud800"}},
        {"request": {"metadata": {"\ud800": ""}}},
        {"request": {"webhook_url": "\udfff"}},
    ],
    ids=str,
)
def test_damaged_payload_is_no_request(damage: dict[str, Any]) -> None:
    """Any bytes: a payload that raised another error would stop every worker that reads its queue."""
    request = resolve(JobRequest.parse(b'{"class_label": 3}'), DEMO, lambda: 1)
    sound = payload_of(request)
    damaged = sound | damage | {"request": sound["request"] | damage.get("request", {})}
    assert read_payload(called_with(sound)) == request
    with pytest.raises(BadPayloadError):
        read_payload(called_with(damaged))


def called_with(payload: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(["f", None, [], payload]).encode())


def test_fixed_form_distinguishes_requests() -> None:
    one, other = (resolve(JobRequest.parse(b'{"class_label": %d}' % label), DEMO, lambda: 1) for label in (1, 2))
    assert fixed_form(one) != fixed_form(other)


if __name__ == "__main__":
    RECORD.write_text(written())
