"""The limits on stored jobs, and the clock by which they expire."""

import time
from typing import Protocol

import pytest
from redis import Redis

from jobs.callers.caller import ANONYMOUS
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.cleaner import Cleaner
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.job_queue import JobQueue
from jobs.settings import Settings
from tests.worker.conftest import Bench

REQUEST = JobRequest(class_label=1)


class Limited(Protocol):
    def __call__(self, **limits: int) -> JobQueue: ...


@pytest.fixture
def limited(bench: Bench, redis: Redis, settings: Settings) -> Limited:
    """The bench's queue as a service with other limits has it."""
    return lambda **limits: JobQueue(redis, settings.model_copy(update=limits), bench.images)


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


def test_memory_of_redis_is_bounded_by_a_setting_and_by_its_own_limit(limited: Limited, redis: Redis) -> None:
    assert "ADM_MAX_REDIS_BYTES" in str(refusal(limited(max_redis_bytes=1)))
    redis.config_set("maxmemory", redis.info("memory")["used_memory"])
    try:
        assert "maxmemory" in str(refusal(limited()))
    finally:
        redis.config_set("maxmemory", 0)


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
