"""Quotas of callers on a real Redis: what is charged, what is refused, and what cannot evade them."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from redis import ConnectionPool, Redis

from jobs.callers.quotas import Quotas
from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import ErrorKind, OverQuotaError, RefusedError
from jobs.contract.items import JobItems
from jobs.contract.job import JobStatus
from jobs.queue.drafting import Submission, Submitted
from jobs.queue.ledger import Above, Group
from jobs.queue.submitting import ItemsSubmission
from jobs.queue.transaction import SCRIPT
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.desk import ANN, BOB, Desk, job_of
from vocabulary.priorities import PRIORITIES

pytestmark = pytest.mark.redis

COST_SECONDS = 5.0  # of `costly`: 25 steps of 40 images at 5 ms a row
ROOT = Caller("d" * 12, Role.OPERATOR)


def costly(caller: Caller, *, key: str | None = None, **fields: object) -> Submission:
    return job_of(caller, key=key, **({"steps": 25, "n": 40} | fields))


@pytest.fixture
def device_desk(redis: Redis, settings: Settings) -> Desk:
    """Callers may post jobs of 12 device seconds a minute."""
    return Desk(redis, settings.model_copy(update={"quota_device_seconds": 12}))


@pytest.fixture
def queued_desk(redis: Redis, settings: Settings) -> Desk:
    """Callers may have jobs of 12 device seconds queued."""
    return Desk(redis, settings.model_copy(update={"quota_queued_seconds": 12}))


def outcomes(desk: Desk, *submissions: Submission) -> list[str]:
    answer = desk.queue.submitter.submit_all(submissions)
    return ["queued" if isinstance(each, Submitted) else each.kind for each in answer]


def refusal(desk: Desk, submission: Submission) -> OverQuotaError:
    (answer,) = desk.queue.submitter.submit_all([submission])
    assert isinstance(answer, OverQuotaError)
    return answer


def test_job_costs_what_its_steps_are_measured_to_take(device_desk: Desk) -> None:
    (job_id,) = device_desk.post(ANN, steps=25, n=40)
    assert device_desk.redis.hget(rq_keys.job_key(job_id), "adm_cost_ms") == str(int(COST_SECONDS * 1000)).encode()


def test_callers_have_a_quota_each_and_operators_none(device_desk: Desk) -> None:
    three = ["queued", "queued", ErrorKind.OVER_QUOTA]
    assert outcomes(device_desk, *[costly(ANN)] * 3) == three
    assert outcomes(device_desk, *[costly(BOB)] * 3) == three
    for free in (ROOT, ANONYMOUS):
        assert outcomes(device_desk, *[costly(free)] * 4) == ["queued"] * 4


def test_refusal_names_the_quota_what_is_left_and_when_it_suffices(device_desk: Desk) -> None:
    outcomes(device_desk, *[costly(ANN)] * 2)
    answer = refusal(device_desk, costly(ANN))
    assert "ADM_QUOTA_DEVICE_SECONDS" in str(answer)
    assert (answer.policy, answer.quota, answer.remaining, answer.window_seconds) == ("device-seconds", 12, 2, 60)
    assert answer.retry_after_seconds is not None
    assert 60 < answer.retry_after_seconds <= 120, "what was charged just now fades in the minute after this one"
    assert outcomes(device_desk, job_of(ANN, steps=10)) == ["queued"], "a smaller one still fits"


def test_refused_job_takes_no_room_from_those_of_others_in_its_batch(redis: Redis, settings: Settings) -> None:
    limits = {"quota_device_seconds": 12, "queue_limit_seconds": 600, "max_queued_jobs": 4}
    desk, refused = Desk(redis, settings.model_copy(update=limits)), ErrorKind.OVER_QUOTA
    huge = costly(ANN, steps=1000, n=64)
    assert outcomes(desk, huge, huge, costly(BOB)) == [refused, refused, "queued"], "the queue was not full"
    assert outcomes(desk, *[huge] * 8, costly(BOB, steps=5)) == [refused] * 8 + ["queued"]
    keyed = costly(ANN, steps=1000, n=64, key="one")
    assert outcomes(desk, *[keyed] * 8, costly(BOB, steps=5)) == [refused] * 8 + ["queued"]


def test_calls_with_one_key_in_one_batch_are_one_job_that_is_charged_once(device_desk: Desk) -> None:
    first = costly(ANN, key="one")
    told = device_desk.submit(*[first] * 5)
    assert [each.replayed for each in told] == [False, True, True, True, True]
    assert len({each.job.id for each in told}) == 1
    assert outcomes(device_desk, costly(ANN)) == ["queued"], "12 device seconds allow two"


def test_job_above_the_whole_quota_is_refused_without_a_time(device_desk: Desk) -> None:
    answer = refusal(device_desk, costly(ANN, steps=250))
    assert answer.retry_after_seconds is None
    assert "split the request" in str(answer)
    assert outcomes(device_desk, costly(ANN)) == ["queued"]


def test_refused_job_is_not_charged(device_desk: Desk) -> None:
    assert outcomes(device_desk, costly(ANN), costly(ANN, steps=50), costly(ANN)) == [
        "queued",
        ErrorKind.OVER_QUOTA,
        "queued",
    ]


def test_no_priority_evades_the_quota(device_desk: Desk, queued_desk: Desk) -> None:
    for desk in (device_desk, queued_desk):
        desk.redis.delete(*desk.redis.scan_iter("adm:quota*"), keys.CALLERS_QUEUED)
        answer = outcomes(desk, *(costly(ANN, priority=each) for each in PRIORITIES))
        assert answer == ["queued", "queued", ErrorKind.OVER_QUOTA]
        for job in desk.queue.page(caller=ANN).data:
            desk.queue.delete(job.id, ANN)


def test_cancelling_gives_no_device_seconds_of_the_minute_back(device_desk: Desk) -> None:
    for _ in range(2):
        (job_id,) = device_desk.post(ANN, steps=25, n=40)
        device_desk.queue.cancel(job_id, ANN)
        device_desk.queue.delete(job_id, ANN)
    assert refusal(device_desk, costly(ANN)).policy == "device-seconds"


def test_replay_is_not_charged_and_a_key_used_again_after_a_deletion_is(device_desk: Desk) -> None:
    first = costly(ANN, key="one")
    job_id = device_desk.submit(first)[0].job.id
    assert [each.replayed for each in device_desk.submit(*[first] * 5)] == [True] * 5
    device_desk.queue.delete(job_id, ANN)
    assert not device_desk.submit(first)[0].replayed
    device_desk.queue.delete(job_id, ANN)
    assert refusal(device_desk, first).policy == "device-seconds"


def test_queued_jobs_count_until_they_start_end_or_go(queued_desk: Desk) -> None:
    ids = queued_desk.post(ANN, 2, steps=25, n=40)
    answer = refusal(queued_desk, costly(ANN))
    assert (answer.policy, answer.quota, answer.remaining) == ("queued-device-seconds", 12, 2)
    assert answer.window_seconds is None
    queued_desk.queue.cancel(ids[0], ANN)
    assert outcomes(queued_desk, costly(ANN), costly(ANN)) == ["queued", ErrorKind.OVER_QUOTA]
    queued_desk.queue.delete(ids[1], ANN)
    assert outcomes(queued_desk, costly(ANN), costly(ANN)) == ["queued", ErrorKind.OVER_QUOTA]
    for job in queued_desk.queue.page(caller=ANN).data:
        queued_desk.queue.delete(job.id, ANN)
    assert queued_desk.redis.hget(keys.CALLERS_QUEUED, ANN.id) == b"0"


class Meeting(Redis):
    """A client whose transactions wait until as many other clients have reached theirs."""

    def __init__(self, address: str, barrier: Barrier) -> None:
        super().__init__(connection_pool=ConnectionPool.from_url(address))
        self._barrier = barrier

    def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        if script == SCRIPT:
            self._barrier.wait(60)
        return super().eval(script, numkeys, *keys_and_args)


@pytest.mark.parametrize("key", [None, "one"])
def test_processes_that_queue_at_the_same_time_do_not_pass_the_quota_together(
    redis: Redis, redis_server: RedisServer, settings: Settings, key: str | None
) -> None:
    """Each of three has counted no queued job when it queues its own, of 5 of the 12 seconds."""
    Desk(redis, settings)  # announces the pipeline
    barrier = Barrier(3)

    def post(number: int) -> str:
        with Meeting(redis_server.address, barrier) as client:
            desk = Desk(client, settings.model_copy(update={"quota_queued_seconds": 12}))
            return outcomes(desk, costly(ANN, key=key and f"{key}-{number}"))[0]

    with ThreadPoolExecutor(3) as threads:
        assert sorted(threads.map(post, range(3))) == sorted(["queued", "queued", ErrorKind.OVER_QUOTA])
    assert redis.hget(keys.CALLERS_QUEUED, ANN.id) == b"10000"


def test_call_for_several_jobs_queues_none_if_another_process_has_used_up_the_quota(
    redis: Redis, redis_server: RedisServer, settings: Settings
) -> None:
    Desk(redis, settings)
    barrier = Barrier(2)
    items = JobItems.parse(
        b'{"class_label": "torus", "guidance_scale": 0, "upsample": false, "n": 32, "items": [{}, {}]}'
    )

    def post(_: int) -> bool:
        with Meeting(redis_server.address, barrier) as client:
            desk = Desk(client, settings.model_copy(update={"quota_queued_seconds": 12}))
            try:
                return len(desk.queue.submitter.submit_items(ItemsSubmission(items, ANN))) == 2
            except OverQuotaError as error:
                return error.policy != "queued-device-seconds"

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(post, range(2))) == [False, True]
    assert redis.zcard(keys.index(JobStatus.QUEUED, ANN.id)) == 2


def test_job_without_a_quota_is_queued_beside_one_that_is_refused(queued_desk: Desk) -> None:
    queued_desk.post(ANN, 2, steps=25, n=40)
    quota, record = 12_000, queued_desk.queue.ledger.read(queued_desk.post(ROOT)[0])
    assert record is not None
    jobs = [record.model_copy(update={"id": name, "caller": caller.id}) for name, caller in (("a", ANN), ("b", ROOT))]
    costs = [each.model_copy(update={"cost_ms": 5000}) for each in jobs]
    answer = queued_desk.queue.ledger.enqueue([Group([costs[0]], quota), Group([costs[1]], None)])
    assert answer is not None
    assert answer[0] == Above(10_000)
    assert isinstance(answer[1], list)


def test_damaged_counter_locks_nobody_out(queued_desk: Desk) -> None:
    for garbage in ("999999999", "garbage"):
        queued_desk.redis.hset(keys.CALLERS_QUEUED, ANN.id, garbage)
        (job_id,) = queued_desk.post(ANN, steps=25, n=40)
        queued_desk.queue.delete(job_id, ANN)


def test_posts_are_counted_replayed_and_wrong_ones_too(redis: Redis, settings: Settings) -> None:
    desk = Desk(redis, settings.model_copy(update={"quota_posts": 4}))
    replayed = job_of(ANN, key="one")
    answer = outcomes(desk, replayed, replayed, job_of(ANN, model="none"), replayed, replayed)
    assert answer == ["queued", "queued", ErrorKind.INVALID_REQUEST, "queued", ErrorKind.OVER_QUOTA]
    assert outcomes(desk, job_of(BOB)) == ["queued"]


def test_call_after_the_stated_wait_is_accepted(redis: Redis, settings: Settings) -> None:
    """The quota library's windows follow Redis' clock, so time passes here by shortening the expiry of their keys."""
    quotas = Quotas(redis, settings.model_copy(update={"quota_device_seconds": 10}))
    for _ in range(6):
        quotas.take_cost(ANN, 1500)
    with pytest.raises(OverQuotaError) as raised:
        quotas.take_cost(ANN, 4000)
    wait = raised.value.retry_after_seconds
    assert wait is not None
    pass_time(redis, wait - 2)
    with pytest.raises(RefusedError):
        quotas.take_cost(ANN, 4000)
    pass_time(redis, 3)
    quotas.take_cost(ANN, 4000)


def pass_time(redis: Redis, seconds: float) -> None:
    for key in redis.scan_iter("adm:quota*"):
        if (left := int(redis.pttl(key)) - int(seconds * 1000)) > 0:
            redis.pexpire(key, left)
        else:
            redis.delete(key)


def test_quotas_leave_nothing_that_stays(redis: Redis, settings: Settings) -> None:
    quotas = Quotas(redis, settings.model_copy(update={"quota_device_seconds": 10, "quota_posts": 5}))
    quotas.take_cost(ANN, 100)
    quotas.take_post(ANN)
    assert all(0 < int(redis.ttl(each)) <= 120 for each in redis.scan_iter("adm:quota*"))
    assert len(list(redis.scan_iter("*"))) == 2
