"""The limits on stored jobs, and the clock by which they expire."""

import time
from dataclasses import replace
from typing import Protocol, cast

import pytest
from pydantic import SecretStr
from redis import Redis

from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.announcements import announce_worker
from jobs.queue.cleaner import Cleaner
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.job_bytes import JobBytes
from jobs.queue.job_queue import JobQueue
from jobs.queue.webhooks import Webhooks
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from tests.jobs.samples import worker_info
from tests.worker.conftest import Bench

REQUEST = JobRequest(class_label=1)
SECRET = {"webhook_secret": SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")}


class Limited(Protocol):
    def __call__(self, **limits: int) -> JobQueue: ...


@pytest.fixture
def limited(bench: Bench, redis: Redis, settings: Settings) -> Limited:
    """Makes the bench's queue with other limits."""
    return lambda **limits: JobQueue(redis, settings.model_copy(update=SECRET | limits), bench.images)


def refusal(queue: JobQueue) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        queue.submitter.submit(REQUEST)
    assert caught.value.kind is ErrorKind.QUEUE_FULL
    assert caught.value.retry_after_seconds
    return caught.value


def test_jobs_that_wait_are_bounded_in_number(limited: Limited) -> None:
    queue = limited(max_queued_jobs=2)
    first, _ = queue.submitter.submit(REQUEST), queue.submitter.submit(REQUEST)
    assert "ADM_MAX_QUEUED_JOBS" in str(refusal(queue))
    queue.cancel(first.job.id)
    queue.submitter.submit(REQUEST)


def test_jobs_that_are_cancelled_repeatedly_are_bounded_in_number(limited: Limited) -> None:
    queue = limited(max_jobs=3)
    for _ in range(3):
        queue.cancel(queue.submitter.submit(REQUEST).job.id)
    assert "ADM_MAX_JOBS" in str(refusal(queue))
    queue.delete(queue.page().data[0].id)
    queue.submitter.submit(REQUEST)


def test_jobs_of_one_batch_count_before_they_are_written(limited: Limited) -> None:
    outcomes = limited(max_queued_jobs=2).submitter.submit_all([Submission(REQUEST, ANONYMOUS)] * 3)
    assert [isinstance(each, Submitted) for each in outcomes] == [True, True, False]


ANN, BOB = (Caller(name, Role.USER) for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"))


def accepted(queue: JobQueue, caller: Caller, number: int) -> list[str]:
    """Submit jobs; return the errors of refused ones."""
    outcomes = queue.submitter.submit_all([Submission(REQUEST, caller)] * number)
    return [str(each) for each in outcomes if isinstance(each, RefusedError)]


def test_caller_may_queue_three_quarters_of_the_jobs_and_leaves_the_rest_to_others(limited: Limited) -> None:
    queue = limited(max_queued_jobs=8)
    refused = [*accepted(queue, ANN, 5), *accepted(queue, ANN, 2)]
    assert refused == ["6 of your jobs are queued, and the limit is 6 (three quarters of ADM_MAX_QUEUED_JOBS)"]
    assert accepted(queue, BOB, 2) == []
    assert "ADM_MAX_QUEUED_JOBS" in accepted(queue, BOB, 1)[0]


def test_caller_may_keep_three_quarters_of_the_jobs_and_an_operator_all(limited: Limited) -> None:
    queue = limited(max_jobs=8)
    assert accepted(queue, ANN, 6) == []
    for each in queue.page(caller=ANN).data:
        queue.cancel(each.id, ANN)
    assert "three quarters of ADM_MAX_JOBS" in accepted(queue, ANN, 1)[0]
    assert accepted(queue, Caller("cccccccccccc", Role.OPERATOR), 2) == []


def test_caller_may_queue_three_quarters_of_the_work_and_leaves_the_rest_to_others(
    bench: Bench, redis: Redis, settings: Settings
) -> None:
    def queue(seconds: float) -> JobQueue:
        return JobQueue(redis, settings.model_copy(update={"queue_limit_seconds": seconds}), bench.images)

    with redis.pipeline() as pipe:  # a worker's announcement has the times of steps
        announce_worker(pipe, worker_info("a"), "", 600)
        pipe.execute()
    (submitted,) = queue(3600).submitter.submit_all([Submission(REQUEST, ANN)])
    assert isinstance(submitted, Submitted)
    job_ms = int(cast(bytes, redis.hget(keys.CALLERS_QUEUED, ANN.id)))
    assert job_ms > 0
    seconds = 100 * job_ms / 1000
    limits = queue(seconds)
    while not (refused := accepted(limits, ANN, 1)):
        pass
    assert "three quarters of ADM_QUEUE_LIMIT_SECONDS" in refused[0]
    assert accepted(limits, BOB, 10) == []


def test_own_work_for_other_workers_refuses_no_job_for_idle_ones(
    bench: Bench, redis: Redis, settings: Settings
) -> None:
    """Own work is counted over all pipelines, of which others' workers may serve the most."""
    with redis.pipeline() as pipe:
        announce_worker(pipe, worker_info("a"), "", 600)
        pipe.execute()
    redis.hset(keys.CALLERS_QUEUED, ANN.id, 10_000_000)
    redis.zadd(keys.index(JobStatus.QUEUED, ANN.id), {"job-of-another-pipeline": 1})
    assert accepted(JobQueue(redis, settings, bench.images), ANN, 1) == []


def test_webhooks_of_removed_jobs_are_bounded_too(limited: Limited, redis: Redis) -> None:
    queue = limited(max_jobs=8)
    request = REQUEST.model_copy(update={"webhook_url": "https://a.example/"})

    def post(caller: Caller) -> str:
        """Post a job, cancel it and remove it at once; return the error if it is refused."""
        (outcome,) = queue.submitter.submit_all([Submission(request, caller)])
        if isinstance(outcome, Submitted):
            queue.cancel(outcome.job.id, caller)
            queue.delete(outcome.job.id, caller)
        return str(outcome) if isinstance(outcome, RefusedError) else ""

    assert [post(ANN) for _ in range(6)] == [""] * 6
    assert post(ANN) == "6 of your webhooks are pending, and the limit is 6 (three quarters of ADM_MAX_JOBS)"
    assert accepted(queue, ANN, 1) == [], "a job without a webhook"
    assert [post(BOB), post(BOB)] == ["", ""]
    assert post(BOB) == "8 webhooks are pending, and the limit is 8 (ADM_MAX_JOBS)"
    webhooks = Webhooks(redis)
    for each in webhooks.pending():
        if each.caller == ANN.id:
            webhooks.delivered(each)
    assert post(ANN) == post(BOB) == ""


def test_memory_of_redis_is_bounded_by_a_setting_and_by_its_own_limit(limited: Limited, redis: Redis) -> None:
    assert "ADM_MAX_REDIS_BYTES" in str(refusal(limited(max_redis_bytes=1)))
    redis.config_set("maxmemory", redis.info("memory")["used_memory"])
    try:
        assert "maxmemory" in str(refusal(limited()))
    finally:
        redis.config_set("maxmemory", 0)


def test_caller_may_have_three_quarters_of_the_memory_and_leaves_the_rest_to_others(
    limited: Limited, redis: Redis
) -> None:
    before = redis.info("memory")["used_memory"]
    queue = limited()
    assert accepted(queue, ANN, 20) == accepted(queue, BOB, 1) == []
    for job in queue.page(caller=ANN, mine=True).data:  # the results make each large
        redis.hset(rq_keys.job_key(job.id), "adm_results", '{"text": "%s"}' % ("x" * before))
    limit = int(20 * before / 0.8)  # her jobs are four fifths of it, and all of Redis less than the whole
    assert redis.info("memory")["used_memory"] < limit
    (refused,) = accepted(limited(max_redis_bytes=limit), ANN, 1)
    assert "of your jobs" in refused
    assert "three quarters of ADM_MAX_REDIS_BYTES" in refused
    assert accepted(limited(max_redis_bytes=limit), BOB, 1) == []
    assert accepted(limited(max_redis_bytes=limit), replace(ANN, role=Role.OPERATOR), 1) == []
    assert accepted(limited(max_redis_bytes=2 * limit), ANN, 1) == []


def test_estimate_of_a_callers_memory_is_not_below_what_its_jobs_and_webhooks_take(
    limited: Limited, redis: Redis
) -> None:
    """Also where a few jobs are much larger than the others, and however often it is asked."""
    queue, before = limited(), redis.info("memory")["used_memory"]
    small = REQUEST.model_copy(update={"webhook_url": "https://example.com/" + "x" * 900})
    large = REQUEST.model_copy(update={"metadata": {f"key{number}": "x" * 500 for number in range(16)}})
    for request, number in ((small, 90), (large, 9)):
        queued = queue.submitter.submit_all([Submission(request, ANN)] * number)
        assert all(isinstance(each, Submitted) for each in queued)
    for job in queue.page(caller=ANN, mine=True, limit=100).data:
        queue.cancel(job.id, ANN)
    used = redis.info("memory")["used_memory"] - before
    estimates = [JobBytes(redis).of(ANN.id) for _ in range(20)]
    assert used <= min(estimates)
    assert max(estimates) < 2 * used


def test_no_job_is_accepted_by_a_redis_that_evicts(limited: Limited, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RefusedError) as caught:
            limited().submitter.submit(REQUEST)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert (caught.value.kind, "noeviction" in str(caught.value)) == (ErrorKind.UNAVAILABLE, True)


def test_jobs_of_one_batch_see_each_other_in_the_queue(bench: Bench) -> None:
    outcomes = bench.queue.submitter.submit_all([Submission(REQUEST, ANONYMOUS)] * 3)
    queues = [each.job.queue for each in outcomes if isinstance(each, Submitted)]
    assert [each and each.position for each in queues] == [0, 1, 2]
    assert [each.job.queue for each in outcomes if isinstance(each, Submitted)] == [
        bench.queue.get(each.job.id).queue for each in outcomes if isinstance(each, Submitted)
    ]


def test_what_is_refused_stops_nothing_else_of_its_batch(bench: Bench) -> None:
    good, bad = Submission(REQUEST, ANONYMOUS), Submission(JobRequest(class_label=1, model="none"), ANONYMOUS)
    keyed = Submission(REQUEST, ANONYMOUS, idempotency_key="k")
    outcomes = bench.queue.submitter.submit_all([good, bad, keyed, keyed, good])
    assert [isinstance(each, Submitted) for each in outcomes] == [True, False, True, True, True]
    assert len(bench.queue.page().data) == 3


@pytest.mark.parametrize("ahead_seconds", [-7200, 7200])
def test_jobs_expire_by_redis_time_though_a_service_has_another(
    bench: Bench, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    waiting = bench.submit(expires_in=60)
    on_time = time.time
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(time, "time", lambda: on_time() + ahead_seconds)
        queue = JobQueue(redis, settings, bench.images)
        cleaner = Cleaner(redis, queue.ledger, bench.images, queue.files, lease_seconds=30)
        job = queue.submitter.submit(JobRequest(class_label=1, expires_in=60)).job
        assert cleaner.expire_jobs() == 0
        ended = bench.queue.cancel(waiting)
        assert cleaner.remove_ended() == 0
    assert abs(job.created_at - on_time()) < 30
    assert bench.queue.get(job.id).status is JobStatus.QUEUED
    assert ended.ended_at is not None
    assert abs(ended.ended_at - on_time()) < 30
