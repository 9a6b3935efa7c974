import pytest

from jobs.estimate import Backlog, Estimator, batch_ms, row_ms, work_of
from jobs.fleet import Fleet
from jobs.request import JobRequest, ResolvedRequest
from jobs.resolution import resolve
from tests.jobs.samples import DEMO, worker_info

STEP_MS = {"base": {4: 40.0, 16: 80.0}, "upsample": {4: 80.0, 16: 160.0}}
EMPTY = Backlog("demo", lengths={"high": 0, "normal": 0, "low": 0}, work={}, errors=())


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
    assert row_ms(STEP_MS, "base") == 5
    assert row_ms(STEP_MS, "other") == 0


@pytest.mark.parametrize(("rows", "beside", "ms"), [(1, 0, 40), (5, 0, 80), (1, 3, 40), (1, 4, 80), (33, 0, 240)])
def test_step_costs_what_its_shape_costs(rows: int, beside: int, ms: float) -> None:
    assert batch_ms(STEP_MS["base"], rows, beside) == ms


def test_lone_job_takes_its_own_steps() -> None:
    assert Estimator(fleet(1)).eta_seconds(EMPTY, request(steps=25), 0) == pytest.approx(1.0)


def test_job_that_has_room_in_the_batch_waits_for_nobody() -> None:
    """Another image of 100 steps runs, one waits: three share a shape of four."""
    busy = Backlog(
        "demo", lengths={"high": 0, "normal": 1, "low": 0}, work={"running:base": 100, "normal:base": 100}, errors=()
    )
    assert Estimator(fleet(1)).eta_seconds(busy, request(steps=100), 1) == pytest.approx(100 * 0.04)


def test_wait_is_the_work_ahead_shared_by_the_workers() -> None:
    busy = Backlog(
        "demo",
        lengths={"high": 1, "normal": 4, "low": 9},
        work={"high:base": 1000, "normal:base": 2000, "low:base": 9000, "running:base": 400},
        errors=(),
    )
    for workers in (1, 2):
        eta = Estimator(fleet(workers)).eta_seconds(busy, request(steps=25), 2)
        assert eta == pytest.approx((1000 + 2000 / 2 + 400 / 2) * 0.005 / workers + 25 * 0.08)


def test_nothing_is_estimated_before_anything_was_measured() -> None:
    estimator = Estimator(Fleet())
    assert estimator.eta_seconds(EMPTY, request(), 0) is None
    assert estimator.queued_seconds(EMPTY) is None
