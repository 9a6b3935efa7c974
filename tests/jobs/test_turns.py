"""Turns between callers, on a real Redis: the order of a line, and the reported places."""

import random
from collections import Counter
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from bench.simulate_callers import make_jobs, measure
from bench.simulate_load import make_pipelines
from bench.turns import Line
from jobs.contract.caller import Caller, Role
from jobs.redis import keys, rq_keys
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.desk import ANN, BOB, CYD, QUEUE, Desk, job_of

pytestmark = pytest.mark.redis


@pytest.fixture
def desk(redis: Redis, settings: Settings) -> Desk:
    return Desk(redis, settings)


@pytest.mark.slow
def test_one_callers_thousand_jobs_do_not_stand_before_anothers_one(desk: Desk) -> None:
    for _ in range(10):
        desk.post(ANN, 100)
    (job_id,) = desk.post(BOB)
    assert desk.line().index(job_id) == 1


def test_jobs_of_one_caller_keep_the_order_of_coming(desk: Desk) -> None:
    posted = [job_id for steps in (25, 1, 250, 10) for job_id in desk.post(ANN, steps=steps)]
    assert desk.line() == posted


def test_callers_take_turns_by_cost(desk: Desk) -> None:
    desk.post(ANN, 6, steps=10)
    desk.post(BOB, 3, steps=20)
    assert desk.order() == "abaabaaba"


def test_weight_is_the_part_of_the_turns(desk: Desk) -> None:
    desk.post(ANN, 8)
    desk.post(Caller("b" * 12, Role.USER, weight=3.0), 6)
    assert Counter(desk.order()[1:5]) == {"b": 3, "a": 1}
    assert Counter(desk.order()[5:9]) == {"b": 3, "a": 1}


def test_what_a_caller_has_had_counts_when_it_comes_again(desk: Desk) -> None:
    """A caller who posts one job at a time gets no more than one who posts all at once."""
    desk.post(ANN, 20, steps=10)
    served = ""
    for _ in range(4):
        desk.post(BOB, steps=40)
        while (owner := desk.owners[desk.line()[0]][:1]) != "b":
            served += owner
            desk.queue.delete(desk.line()[0])  # stands for a claim: what is at the head leaves
        served += "b"
        started = desk.line()[0]
        desk.redis.hset(rq_keys.job_key(started), "adm_attempt", 1)
        desk.queue.delete(started)
    assert served.count("a") >= 12


def test_cancelled_jobs_give_their_turns_back_and_no_more(desk: Desk) -> None:
    desk.post(ANN, 10)
    given_up = desk.post(BOB, 10)
    for job_id in given_up:
        desk.queue.cancel(job_id, BOB)
    (first,) = desk.post(BOB)
    assert desk.line().index(first) == 1
    for _ in range(5):  # nobody gets nearer by cancelling
        desk.queue.cancel(first, BOB)
        (first,) = desk.post(BOB)
        assert desk.line().index(first) == 1
    assert desk.order().count("a") == 10


def test_idle_time_saves_nothing_up(desk: Desk) -> None:
    desk.post(ANN, 3)
    for job_id in desk.line():
        desk.redis.hset(rq_keys.job_key(job_id), "adm_attempt", 1)
        desk.queue.delete(job_id)
    desk.post(BOB, 3)
    desk.post(CYD, 3)
    assert desk.order() == "bcbcbc"


def test_each_priority_has_turns_of_its_own(desk: Desk) -> None:
    desk.post(ANN, 5, priority="high")
    desk.post(BOB, 2)
    desk.post(ANN, 2)
    assert desk.order() == "baba"


def test_answer_gives_the_place_in_the_queue_and_among_the_callers_own_jobs(desk: Desk) -> None:
    desk.post(ANN, 30)
    answers = desk.submit(*[job_of(BOB)] * 3) + desk.submit(job_of(BOB, key="one"))
    for submitted in answers:
        shown, now = submitted.job.queue, desk.queue.get(submitted.job.id, BOB).queue
        assert shown is not None
        assert now is not None
        assert (shown.position, shown.yours) == (now.position, now.yours)
        before = desk.line()[: now.position]
        assert now.yours == sum(desk.owners[each] == BOB.id for each in before)
    positions = [each.job.queue.position for each in answers if each.job.queue is not None]
    assert positions == [1, 3, 5, 7]


def test_without_keys_all_that_goes_before_is_yours(desk: Desk) -> None:
    nobody = Caller("", Role.OPERATOR)
    answers = desk.submit(*[job_of(nobody)] * 3)
    places = [(each.job.queue.position, each.job.queue.yours) for each in answers if each.job.queue is not None]
    assert places == [(0, 0), (1, 1), (2, 2)]


def test_short_wait_of_a_newcomer_shows_in_its_estimate(desk: Desk) -> None:
    desk.post(ANN, 200, n=8)
    newcomer, last = desk.submit(job_of(BOB, n=8))[0].job.queue, desk.submit(job_of(ANN, n=8))[0].job.queue
    assert newcomer is not None
    assert last is not None
    assert newcomer.eta_seconds is not None
    assert last.eta_seconds is not None
    assert newcomer.eta_seconds * 10 < last.eta_seconds


def test_jobs_of_earlier_versions_which_have_no_turns_go_first(desk: Desk) -> None:
    old = desk.post(ANN, 4)
    for job_id in old:
        desk.redis.hdel(rq_keys.job_key(job_id), "adm_turn")
    desk.redis.delete(keys.turn_ends(QUEUE))
    desk.post(BOB, 2)
    assert desk.order() == "aaaabb"


@pytest.mark.parametrize("key", [keys.turn_ends(QUEUE), keys.own_line(QUEUE, BOB.id)])
def test_damaged_key_of_turns_loses_no_job(desk: Desk, key: str) -> None:
    desk.post(ANN, 3)
    desk.redis.delete(key)
    desk.redis.set(key, "garbage")
    (job_id,) = desk.post(BOB)
    assert job_id in desk.line()
    assert desk.queue.cancel(job_id, BOB).status == "cancelled"
    assert job_id not in desk.line()


@pytest.mark.slow
def test_equal_callers_get_equal_parts_in_the_simulation() -> None:
    jobs = make_jobs(4, 100, make_pipelines(1)[0], random.Random(1), alike=True)
    turns, queue = (measure(2, 4, jobs, in_turns=in_turns) for in_turns in (True, False))
    assert turns["jain_index"] >= 0.95
    assert queue["jain_index"] < 0.8
    assert turns["single_jobs_wait_seconds"]["max"] < queue["single_jobs_wait_seconds"]["max"] / 2


ACTIONS = st.one_of(
    st.tuples(st.just("post"), st.sampled_from([ANN, BOB, CYD]), st.sampled_from([1, 10, 25, 250])),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.none()),
    st.tuples(st.just("claim"), st.none(), st.none()),
)


@pytest.mark.slow
@given(st.lists(ACTIONS, min_size=5, max_size=40))
def test_redis_keeps_the_order_that_the_simulation_keeps(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, object, object]]
) -> None:
    """The simulation has the rule in Python, and Redis in its script: any difference would make its figures wrong."""
    data = tmp_path_factory.mktemp("turns")
    with redis_server.client() as redis:
        redis.flushall()
        desk = Desk(redis, Settings(data=data, redis_url=redis_server.address, fleet_refresh_seconds=60))
        model: Line[str] = Line()
        for action, which, steps in actions:
            line = desk.line()
            if action == "post":
                caller = cast(Caller, which)
                (job_id,) = desk.post(caller, steps=steps)
                model.enter(job_id, caller.id, float(redis.hget(rq_keys.job_key(job_id), "adm_share") or 0))
            elif action == "cancel" and line:
                job_id = line[cast(int, which) % len(line)]
                desk.queue.delete(job_id)
                model.leave(job_id, served=False)
            elif action == "claim" and line:
                redis.hset(rq_keys.job_key(line[0]), "adm_attempt", 1)
                desk.queue.delete(line[0])
                model.leave(line[0], served=True)
            assert desk.line() == list(model)
        for caller in (ANN, BOB, CYD):
            own = [each for each in desk.line() if desk.owners[each] == caller.id]
            turns = [float(redis.hget(rq_keys.job_key(each), "adm_turn") or 0) for each in own]
            assert all(first <= second for first, second in pairwise(turns))
