import dataclasses
import math

import pytest

from engine.scheduler import SLACK_FACTORS
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import rank_of, work_of
from jobs.views.estimate import Backlog, Estimator, batch_ms
from jobs.views.fleet import Fleet
from tests.jobs.samples import DEMO, worker_info

STEP_MS = {"base": {4: 40.0, 16: 80.0}, "upsample": {4: 80.0, 16: 160.0}}
EMPTY = Backlog("demo", lengths={"high": 0, "normal": 0, "low": 0}, work={}, ratios=())


def fleet(workers: int) -> Fleet:
    names = [f"cpu-{index}" for index in range(workers)]
    return Fleet({"demo": DEMO}, tuple(worker_info(name) for name in names), {"demo": STEP_MS})


def request(**fields: object) -> ResolvedRequest:
    return resolve(JobRequest.model_validate({"class_label": 1, "upsample": False} | fields), DEMO, lambda: 0)


def test_work_counts_row_steps_of_every_stage() -> None:
    assert work_of(request(n=3, steps=50)) == {"base": 150}
    assert work_of(request(n=3, steps=50, upsample=True)) == {"base": 150, "upsample": 30}


def test_work_of_a_sampler_with_two_evaluations_a_step_is_counted_in_evaluations() -> None:
    assert work_of(request(n=2, steps=10, sampler="heun", upsample={"steps": 1, "sampler": "heun"})) == {
        "base": 38,
        "upsample": 2,
    }


def test_row_costs_what_the_best_shape_makes_it_cost() -> None:
    assert Fleet(step_ms={"demo": STEP_MS | {"other": {}}}).row_ms == {"demo": {"base": 5, "upsample": 10}}


@pytest.mark.parametrize(("rows", "beside", "ms"), [(1, 0, 40), (5, 0, 80), (1, 3, 40), (1, 4, 80), (33, 0, 240)])
def test_step_costs_what_its_shape_costs(rows: int, beside: int, ms: float) -> None:
    assert batch_ms(STEP_MS["base"], rows, beside) == ms


def test_lone_job_takes_its_own_steps() -> None:
    assert Estimator(fleet(1)).eta_seconds(EMPTY, request(steps=25)) == pytest.approx(1.0)


def test_job_that_has_room_in_the_batch_waits_for_nobody() -> None:
    """Another image of 100 steps runs, one waits: three share a shape of four."""
    busy = Backlog(
        "demo",
        lengths={"high": 0, "normal": 1, "low": 0},
        work={"running:10:base": 100, "normal:10:base": 100},
        ratios=(),
    )
    assert Estimator(fleet(1)).eta_seconds(busy, request(steps=100)) == pytest.approx(100 * 0.04)


def test_wait_is_the_work_ahead_shared_by_the_workers() -> None:
    """Ahead is what has a lower rank, and half of what has the same; what is longer waits."""
    own = rank_of("normal", {"base": 25})
    work = {f"high:{own - 4}:base": 1000, f"normal:{own}:base": 2000, f"normal:{own + 1}:base": 9000}
    work |= {f"low:{own + 4}:base": 9000, f"running:{own - 1}:base": 400, f"running:{own + 3}:base": 9000}
    busy = Backlog("demo", lengths={"high": 1, "normal": 4, "low": 9}, work=work, ratios=())
    for workers in (1, 2):
        eta = Estimator(fleet(workers)).eta_seconds(busy, request(steps=25))
        assert eta == pytest.approx((1000 + 2000 / 2 + 400 / 2) * 0.005 / workers + 25 * 0.08)


def running(request: ResolvedRequest, jobs: int = 1) -> Backlog:
    """A backlog of `jobs` jobs of a request, all in progress."""
    work = work_of(request)
    counters = {
        f"running:{rank_of(request.priority, work)}:{stage}": jobs * row_steps for stage, row_steps in work.items()
    }
    return dataclasses.replace(EMPTY, work=counters)


@pytest.mark.parametrize(("done", "seconds"), [(0, 1.8), (5 / 35, 1.6), (25 / 35, 0.8), (34 / 35, 0.08), (1, 0)])
def test_running_job_has_the_rest_of_its_own_steps_before_it(done: float, seconds: float) -> None:
    """25 steps of 40 ms in the base stage, then 10 of 80 ms."""
    alone = request(upsample=True)
    assert Estimator(fleet(1)).eta_seconds(running(alone), alone, done=done) == pytest.approx(seconds)


def test_running_job_takes_longer_for_those_beside_it() -> None:
    """Five images make a batch of 16, whose step takes 80 ms."""
    alone = request(n=4)
    together = dataclasses.replace(running(alone), work={"running:1:base": 100} | dict(running(alone).work))
    assert Estimator(fleet(1)).eta_seconds(running(alone), alone, done=0.2) == pytest.approx(20 * 0.04)
    assert Estimator(fleet(1)).eta_seconds(together, alone, done=0.2) == pytest.approx(20 * 0.08)


def test_nothing_is_estimated_before_anything_was_measured() -> None:
    estimator = Estimator(Fleet())
    assert estimator.eta_seconds(EMPTY, request()) is None
    assert estimator.queued_seconds(EMPTY) is None


def test_a_priority_weighs_as_much_in_an_estimate_as_in_the_engine() -> None:
    by_rank = [rank_of(priority, {"base": 100}) for priority in ("high", "normal", "low")]
    by_patience = [math.log2(SLACK_FACTORS[priority]) for priority in ("high", "normal", "low")]
    assert [rank - by_rank[1] for rank in by_rank] == by_patience


def test_estimates_that_were_all_off_the_same_way_are_corrected() -> None:
    late = dataclasses.replace(EMPTY, ratios=(2.0,) * 8)
    assert (late.bias, late.error) == (2.0, 0.0)
    assert dataclasses.replace(EMPTY, ratios=(2.0,) * 7).bias == 1
    assert EMPTY.error == 0.5
    assert dataclasses.replace(EMPTY, ratios=(0.5, 1.5)).error == 0.5
