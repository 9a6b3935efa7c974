"""Foreign and corrupt entries in Redis: a good job beside them completes, and a corrupt job fails and says so."""

import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from structlog.testing import capture_logs

from jobs.contract.errors import FailureKind, RefusedError
from jobs.contract.job import JobStatus, Progress
from jobs.redis import keys, rq_keys
from tests.corruption import DAMAGE, FIELDS, FOREIGN, replace, spoil
from tests.jobs.samples import worker_info
from tests.worker.conftest import Bench, OpenInbox
from worker.inbox import Inbox


def assert_damaged(bench: Bench, job_id: str, field: str) -> None:
    job = bench.queue.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.kind, field in job.error.detail) == (FailureKind.BAD_PAYLOAD, True), job.error
    assert [each.id for each in bench.queue.page(JobStatus.FAILED).data] == [job_id]
    assert bench.events(job_id).count("failed") == 1


def assert_nothing_is_left(bench: Bench, job_id: str) -> None:
    bench.queue.delete(job_id)
    redis: Any = bench.redis
    named = [each for each in redis.scan_iter() if job_id.encode() in each]
    assert [each for each in named if each != keys.progress(job_id).encode()] == []
    for key in redis.scan_iter("*"):
        match redis.type(key):
            case b"zset":
                assert not [each for each, _ in redis.zscan_iter(key) if job_id.encode() in each], key
            case b"list":
                assert redis.lpos(key, job_id) is None, key
    assert not any(int(number) for number in redis.hvals(keys.queued_work("demo")))


@pytest.mark.parametrize("field", FIELDS)
def test_queued_job_with_a_damaged_field_fails_and_the_next_one_runs(
    bench: Bench, inbox: Inbox, redis: Redis, field: str
) -> None:
    bad, good = bench.submit(), bench.submit()
    spoil(redis, bad, field, DAMAGE[field])
    (claim,) = bench.claim(inbox)
    assert claim.job_id == good
    assert bench.finish(inbox, claim)
    assert_damaged(bench, bad, field)
    bench.queue.delete(good)
    assert_nothing_is_left(bench, bad)


@pytest.mark.parametrize("field", FIELDS)
def test_running_job_with_a_damaged_field_fails_and_leaves_nothing(
    bench: Bench, inbox: Inbox, redis: Redis, field: str
) -> None:
    bad = bench.submit()
    (claim,) = bench.claim(inbox)
    spoil(redis, bad, field, DAMAGE[field])
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    inbox.heartbeat(worker_info(), "")
    assert not bench.finish(inbox, claim)
    assert redis.zcard(keys.LEASES) == 0
    assert_damaged(bench, bad, field)
    assert_nothing_is_left(bench, bad)


@pytest.mark.parametrize("running", [False, True])
def test_job_whose_key_is_no_hash_fails_and_the_next_one_runs(
    bench: Bench, inbox: Inbox, redis: Redis, running: bool
) -> None:
    bad = bench.submit()
    claims = bench.claim(inbox) if running else []
    good = bench.submit()
    replace(redis, rq_keys.job_key(bad))
    inbox.heartbeat(worker_info(), "")
    assert [bench.finish(inbox, each) for each in claims] == [False] * running
    (claim,) = bench.claim(inbox)
    assert claim.job_id == good
    assert bench.finish(inbox, claim)
    assert_damaged(bench, bad, "is no hash")


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"0" * (1 << 26)], ids=["deep", "long"])
def test_payload_that_would_take_the_stack_or_the_memory_fails(
    bench: Bench, inbox: Inbox, redis: Redis, payload: bytes
) -> None:
    bad, good = bench.submit(), bench.submit()
    spoil(redis, bad, "data", zlib.compress(payload))
    assert [each.job_id for each in bench.claim(inbox)] == [good]
    assert_damaged(bench, bad, "not a request in JSON")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "upsample"},
        {"kind": "score"},
        {"kind": "variation"},
        {"kind": "interpolate"},
        {"kind": "interpolate", "images": ["file-a"]},
        {"kind": "variation", "images": ["file-a"] * 65},
        {"kind": "upsample", "images": ["file-a"], "upsample": False},
        {"images": ["file-a"]},
    ],
    ids=["none", "unscored", "unvaried", "no ends", "one end", "65 images", "not enlarged", "no use for pictures"],
)
def test_payload_that_asks_for_nothing_or_too_much_fails_before_it_is_run(
    bench: Bench, inbox: Inbox, redis: Any, fields: dict[str, object]
) -> None:
    bad, good = bench.submit(), bench.submit()
    call = json.loads(zlib.decompress(redis.hget(rq_keys.job_key(bad), "data")))
    call[3]["request"] |= fields
    spoil(redis, bad, "data", zlib.compress(json.dumps(call).encode()))
    assert [each.job_id for each in bench.claim(inbox)] == [good]
    assert_damaged(bench, bad, "not a request")


def test_ended_job_with_a_damaged_field_stays_what_it_was(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    for name in ("adm_usage", "adm_created_at", "status"):
        created_at = bench.queue.get(job_id).created_at
        spoil(redis, job_id, name, b"garbage")
        job = bench.queue.get(job_id)
        assert (job.status, len(job.images)) == (JobStatus.COMPLETED, 1)
        assert job.created_at == pytest.approx(created_at, abs=1e-5)
    assert_nothing_is_left(bench, job_id)


def test_keys_of_another_program_are_left_alone(bench: Bench, redis: Redis) -> None:
    redis.hset("rq:job:theirs", mapping={"status": "queued", "origin": "default", "data": "pickled"})
    redis.set("rq:job:text", "no hash")
    before = redis.dump("rq:job:theirs")
    for job_id in ("theirs", "text"):
        for ask in (bench.queue.get, bench.queue.cancel, bench.queue.delete):
            with pytest.raises(RefusedError, match="no job"):
                ask(job_id)
    assert redis.dump("rq:job:theirs") == before
    assert redis.exists("rq:job:text")


@pytest.mark.parametrize("litter", FOREIGN)
def test_job_beside_foreign_entries_completes(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis, litter: Callable[[Redis], None]
) -> None:
    job_ids = [bench.submit(), bench.submit()]
    (first,) = bench.claim(inbox, room=1)
    litter(redis)
    inbox.heartbeat(worker_info(), "")
    (second,) = bench.claim(inbox) or bench.claim(inbox)
    assert bench.queue.page().data[0].id == job_ids[1]
    assert all(bench.finish(inbox, each) for each in (first, second))
    assert [bench.status(each) for each in job_ids] == ["completed"] * 2
    litter(redis)
    inbox.close()
    open_inbox()


@pytest.mark.parametrize("key", [keys.events, keys.progress])
def test_job_whose_events_are_none_completes(
    bench: Bench, inbox: Inbox, redis: Redis, key: Callable[[str], str]
) -> None:
    job_id = bench.submit()
    replace(redis, key(job_id))
    (claim,) = bench.claim(inbox)
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    with capture_logs():
        assert bench.finish(inbox, claim)
    assert bench.status(job_id) == "completed"


OTHER_FIELDS = ("adm_checkpoint", "adm_reached", "adm_checkpoint_reached", "data", "created_at", "description")
ALL_FIELDS = st.sampled_from([*FIELDS, *OTHER_FIELDS])
JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
VALUES = st.one_of(
    st.binary(max_size=40),
    JSON.map(json.dumps).map(str.encode),
    st.sampled_from([b"nan", b"inf", b"-1", b"1e400", b"[{}]", b'{"base": -1}', b'{"base": "5"}', b'{"base": 1e9}']),
    st.sampled_from([b"queued", b"started", b"finished", b"failed", b"canceled", b"0" * 32, b"adm:demo:low", b"7"]),
)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ALL_FIELDS, VALUES, min_size=1, max_size=3), st.sampled_from(["queued", "running", "ended"]))
def test_no_bytes_in_any_field_stop_a_worker(
    bench: Bench, open_inbox: OpenInbox, redis: Any, spoiled: dict[str, bytes], when: str
) -> None:
    redis.flushall()
    inbox = open_inbox()
    bad = bench.submit()
    claims = bench.claim(inbox) if when != "queued" else []
    if when == "ended":
        bench.finish(inbox, claims.pop())
    for name, value in spoiled.items():
        spoil(redis, bad, name, value)
    good = bench.submit()
    for each in claims:
        inbox.reports.progress((each, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    assert set(inbox.heartbeat(worker_info(), "")) <= {bad}
    for _ in range(3):  # what is left of the damaged job may say that it runs alone
        claims += bench.claim(inbox)
        while claims:
            bench.finish(inbox, claims.pop())
    assert bench.status(good) == "completed"
    for status in (None, *JobStatus):
        assert bench.queue.page(status).model_dump_json()
    for member in redis.zrange(keys.LEASES, 0, -1):
        redis.zadd(keys.LEASES, {member: time.time() - 1})
    inbox.heartbeat(worker_info(), "")
    assert redis.zcard(keys.LEASES) == 0
    bench.queue.get(bad)
    bench.queue.delete(bad)
