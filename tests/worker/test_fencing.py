"""The right to write a job's results: one worker at a time, whichever dies, stalls or gets no answer."""

import time
from collections.abc import Callable

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.contract.errors import FailureKind
from jobs.contract.job import Progress
from jobs.redis import keys, rq_keys
from tests.jobs.samples import png, worker_info
from tests.worker.conftest import Bench, OpenInbox
from worker.inbox import Inbox


def test_result_that_comes_after_a_cancel_is_discarded(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.cancel(job_id)
    assert not bench.finish(inbox, claim)
    assert bench.status(job_id) == "cancelled"
    assert bench.events(job_id).count("cancelled") == 1


def test_stalled_workers_result_is_refused_and_the_other_ones_counts(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    job_id = bench.submit()
    (stalled,) = bench.claim(inbox)
    redis.zadd(keys.LEASES, {f"{job_id}:{stalled.token}": time.time() - 1})
    other = open_inbox("cpu-1")
    (claim,) = bench.claim(other)
    assert claim.attempt == 2
    assert not bench.finish(inbox, stalled)
    assert not inbox.results.image_ready(stalled, bench.images.put(job_id, stalled.token, 0, png()))
    assert not inbox.results.fail(stalled, FailureKind.STEP_FAILED, "late", retry=False)
    assert not inbox.results.requeue(stalled)
    assert bench.status(job_id) == "in_progress"
    assert bench.finish(other, claim)
    assert bench.events(job_id) == ["queued", "started", "queued", "started", "image", "completed"]


def test_heartbeat_extends_leases_and_names_lost_claims(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    kept, lost = bench.submit(), bench.submit()
    claims = {each.job_id: each for each in bench.claim(inbox)}
    for each in claims.values():
        redis.zadd(keys.LEASES, {f"{each.job_id}:{each.token}": time.time() + 1})
    bench.queue.ledger.recover(lost, claims[lost].token)
    assert inbox.heartbeat(worker_info(), "") == [lost]
    ends_at = redis.zscore(keys.LEASES, f"{kept}:{claims[kept].token}")
    assert ends_at is not None
    assert ends_at > time.time() + 20
    assert inbox.heartbeat(worker_info(), "") == []


@pytest.mark.parametrize("ahead_seconds", [3600, -3600])
def test_workers_whose_clocks_differ_take_no_jobs_from_each_other(
    bench: Bench, open_inbox: OpenInbox, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    first, second, on_time = bench.submit(), bench.submit(expires_in=60), time.time
    right, wrong = open_inbox("cpu-0"), open_inbox("cpu-1")
    claims = bench.claim(right, room=1)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", lambda: on_time() + ahead_seconds)
        claims += bench.claim(wrong, room=1)
        assert wrong.heartbeat(worker_info("cpu-1"), "") == []
    assert right.heartbeat(worker_info("cpu-0"), "") == []
    assert [bench.finish(*each) for each in zip((right, wrong), claims, strict=True)] == [True, True]
    assert [bench.queue.get(each).attempt for each in (first, second)] == [1, 1]


def test_restarted_worker_takes_its_own_jobs_back_at_once_and_at_no_cost(bench: Bench, open_inbox: OpenInbox) -> None:
    ids = [bench.submit(), bench.submit()]
    assert len(bench.claim(open_inbox("cpu-7"))) == 2  # and then it is killed
    again = open_inbox("cpu-7")
    claims = bench.claim(again)
    assert {each.job_id for each in claims} == set(ids)
    assert {each.attempt for each in claims} == {2}
    assert {bench.queue.ledger.read(each).retries_left for each in ids} == {3}  # type: ignore[union-attr] # they exist


def test_job_in_flight_at_two_deaths_runs_alone(bench: Bench, open_inbox: OpenInbox) -> None:
    bench.submit()
    for _ in range(2):
        bench.claim(open_inbox("cpu-7"))
    bench.submit(priority="high")
    inbox = open_inbox("cpu-7")
    assert [each.alone for each in bench.claim(inbox, room=1)] == [False]
    assert bench.claim(inbox) == []  # the suspect waits until the batch is empty


def test_nothing_is_taken_beside_a_job_that_runs_alone(bench: Bench, open_inbox: OpenInbox) -> None:
    bench.submit()
    for _ in range(2):
        bench.claim(open_inbox("cpu-7"))
    bench.submit()
    inbox = open_inbox("cpu-7")
    (alone,) = bench.claim(inbox)
    assert alone.alone
    assert bench.finish(inbox, alone)
    assert [each.alone for each in bench.claim(inbox)] == [False]


def test_write_whose_answer_was_lost_may_be_repeated(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert bench.finish(inbox, claim)
    assert bench.finish(inbox, claim)
    assert bench.events(job_id).count("completed") == 1


def test_return_whose_answer_was_lost_may_be_repeated_also_when_another_has_the_job(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    assert inbox.results.requeue(claim)
    assert inbox.results.requeue(claim)
    (second,) = bench.claim(open_inbox("cpu-1"))
    assert inbox.results.requeue(claim)
    assert inbox.results.fail(second, FailureKind.STEP_FAILED, "the step raised", retry=True)
    assert inbox.results.fail(second, FailureKind.STEP_FAILED, "the step raised", retry=True)
    assert redis.lrange(rq_keys.queue_key("adm:demo:normal"), 0, -1) == [job_id.encode()]
    assert redis.hget(rq_keys.job_key(job_id), "retries_left") == b"2"
    assert not bench.finish(inbox, claim)


def test_job_whose_claim_was_lost_is_not_requeued(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, claim.token)
    assert not inbox.results.requeue(claim)


@pytest.mark.parametrize("ended", [False, True])
def test_stalled_worker_reports_nothing_of_a_job_that_another_has(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox, redis: Redis, ended: bool
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, claim.token)
    other = open_inbox("cpu-1")
    (second,) = bench.claim(other)
    if ended:
        assert bench.finish(other, second)
    before = bench.events(job_id)
    inbox.reports.progress((claim, Progress(stage="base", step=1, steps=25, fraction=0.1)))
    assert bench.events(job_id) == before
    assert not redis.exists(keys.progress(job_id))


def test_claim_is_returned_although_redis_fails_right_after_it(
    bench: Bench, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit()
    bench.submit()
    claim = inbox._ledger.change
    calls = iter([claim])

    def change_once(job_id: str, decide: Callable[..., object]) -> object:
        if (real := next(calls, None)) is None:
            raise RedisConnectionError("gone")
        return real(job_id, decide)

    # Redis goes between two commands of one poll, which no proxy can time
    monkeypatch.setattr(inbox._ledger, "change", change_once)
    assert len(bench.claim(inbox)) == 1
