"""A worker beside newer ones: it runs the jobs that it understands, and leaves the others to them."""

import json
import zlib
from typing import Any

import pytest
from structlog.testing import capture_logs

from jobs.redis import rq_keys
from jobs.redis.payload import PAYLOAD_VERSION, REVISION
from tests.worker.conftest import Bench, OpenInbox
from worker.inbox import Inbox

pytestmark = pytest.mark.redis

ROOM = 4
NEWER = {"revision": REVISION + 1}


def call_of(bench: Bench, job_id: str) -> list[Any]:
    """RQ's serialised call of a job."""
    data = bench.redis.hget(rq_keys.job_key(job_id), "data")
    assert isinstance(data, bytes)
    call: list[Any] = json.loads(zlib.decompress(data))
    return call


def write_call(bench: Bench, job_id: str, call: list[Any]) -> None:
    bench.redis.hset(rq_keys.job_key(job_id), "data", zlib.compress(json.dumps(call).encode()))


def submit(bench: Bench, payload: dict[str, Any] | None = None, request: dict[str, Any] | None = None) -> str:
    """Queue a job, with changes to its payload and to the request in it, as a newer version may write them."""
    job_id = bench.submit()
    call = call_of(bench, job_id)
    call[3] |= payload or {}
    call[3]["request"] |= request or {}
    write_call(bench, job_id, call)
    return job_id


NOT_UNDERSTOOD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a field": (NEWER, {"sharpness": 2}),
    "a kind": (NEWER, {"kind": "inpaint"}),
    "a value": (NEWER, {"time_grid": "learned"}),
    "a sampler": (NEWER, {"sampler": "unipc"}),
    "an upsampler's sampler": (NEWER, {"upsample": {"steps": 2, "sampler": "unipc", "eta": 0.0}}),
    "another form": ({"version": PAYLOAD_VERSION + 1}, {}),
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_job_that_only_a_newer_worker_understands_stays_queued_and_delays_nobody(
    bench: Bench, inbox: Inbox, name: str
) -> None:
    payload, request = NOT_UNDERSTOOD[name]
    left = [submit(bench, payload, request) for _ in range(2 * ROOM)]
    plain = bench.submit()
    taken = [claim.job_id for _ in range(3) for claim in bench.claim(inbox, room=ROOM)]
    assert taken == [plain]
    assert {bench.status(each) for each in left} == {"queued"}
    assert bench.events(left[0]) == ["queued"]


def test_left_job_is_logged_once_and_names_no_value(bench: Bench, inbox: Inbox) -> None:
    submit(bench, NEWER, {"sharpness": "a caller's"})
    with capture_logs() as lines:
        for _ in range(3):
            bench.claim(inbox)
    (line,) = [each for each in lines if each["event"] == "left_to_newer_worker"]
    assert "'sharpness'" in line["why"]
    assert "a caller's" not in line["why"]


def test_left_job_can_be_cancelled_and_is_shown(bench: Bench, inbox: Inbox) -> None:
    job_id = submit(bench, NEWER, {"sharpness": 2})
    bench.claim(inbox)
    assert bench.queue.get(job_id).request is None
    bench.queue.cancel(job_id)
    assert bench.status(job_id) == "cancelled"


def test_new_field_that_concerns_no_image_is_ignored(bench: Bench, inbox: Inbox) -> None:
    job_id = submit(bench, NEWER | {"beside_images": ["callback_form", "user"]}, {"callback_form": "short"})
    (claim,) = bench.claim(inbox)
    assert claim.job_id == job_id
    assert bench.finish(inbox, claim)


def test_newer_payload_without_anything_new_is_run(bench: Bench, inbox: Inbox) -> None:
    job_id = submit(bench, NEWER)
    assert [each.job_id for each in bench.claim(inbox)] == [job_id]


@pytest.mark.parametrize(
    ("payload", "request_"), [({}, {"sharpness": 2}), ({"revision": 0}, {"kind": "inpaint"}), ({"version": 0}, {})]
)
def test_payload_of_this_version_or_an_older_one_that_cannot_be_read_fails(
    bench: Bench, inbox: Inbox, payload: dict[str, Any], request_: dict[str, Any]
) -> None:
    job_id = submit(bench, payload, request_)
    assert bench.claim(inbox) == []
    error = bench.queue.get(job_id).error
    assert error is not None
    assert error.kind == "bad-payload"


def test_worker_of_another_process_looks_at_left_jobs_again(bench: Bench, open_inbox: OpenInbox) -> None:
    job_id = submit(bench, NEWER, {"sharpness": 2})
    assert bench.claim(open_inbox("old-0")) == []
    call = call_of(bench, job_id)
    del call[3]["request"]["sharpness"]  # stands for a version that knows the field
    write_call(bench, job_id, call)
    assert [each.job_id for each in bench.claim(open_inbox("new-0"))] == [job_id]
