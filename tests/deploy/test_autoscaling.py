"""The autoscaling rule that the manifests have, in the model of KEDA that the simulation runs."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from bench.autoscaling import Autoscaler, Rule
from bench.simulate_fleet import Scaled, fresh, make_day
from bench.simulate_load import STEP_MS, make_pipelines

RULE = Rule()
Load = Callable[[float], tuple[float, int]]  # a time -> seconds queued, rows in flight


def replicas_over(seconds: float, load: Load, replicas: int = 0, rule: Rule = RULE) -> list[int]:
    """The number of replicas after each look."""
    autoscaler, found = Autoscaler(rule), []
    for look in range(int(seconds / rule.polling_seconds)):
        now = look * rule.polling_seconds
        replicas = autoscaler.decide(now, replicas, *load(now))
        found.append(replicas)
    return found


def test_one_small_job_starts_no_worker_until_it_has_waited_for_long() -> None:
    found = replicas_over(2 * RULE.patience_seconds, lambda now: (RULE.activation_seconds / 2, 0))
    waited = found.index(1) * RULE.polling_seconds
    assert waited == RULE.patience_seconds


def test_work_above_the_activation_threshold_starts_one_worker_at_the_next_look() -> None:
    assert replicas_over(RULE.polling_seconds, lambda now: (RULE.activation_seconds + 1, 0)) == [1]


def test_fleet_has_a_worker_for_each_threshold_of_queued_work_and_grows_at_the_rate_allowed() -> None:
    found = replicas_over(120, lambda now: (4.5 * RULE.threshold_seconds, 0))
    assert found[-1] == 5
    assert max(after - before for before, after in pairwise(found)) <= RULE.up


def test_fleet_never_exceeds_its_bounds() -> None:
    draw = random.Random(1)
    found = replicas_over(86_400, lambda now: (draw.choice((0.0, 1e4)), draw.choice((0, 1000))))
    assert min(found) >= RULE.min_replicas
    assert max(found) == RULE.max_replicas


def test_busy_workers_stay_though_nothing_is_queued() -> None:
    assert set(replicas_over(7200, lambda now: (0.0, 2 * RULE.rows), replicas=2)) == {2}


def test_fleet_shrinks_by_one_a_minute_after_the_stabilization_and_to_zero_after_the_cooldown() -> None:
    def load(now: float) -> tuple[float, int]:
        return (4 * RULE.threshold_seconds, 0) if now < 60 else (0.0, 0)

    found = replicas_over(3600, load, replicas=4)
    shrinks = found.index(3) * RULE.polling_seconds
    assert shrinks > RULE.stabilization_seconds
    assert found[-1] == 0
    drops = [before - after for before, after in pairwise(found) if after > 0]
    assert max(drops) == RULE.down
    assert found.index(0) * RULE.polling_seconds >= RULE.cooldown_seconds


def test_burst_that_ends_within_the_stabilization_costs_no_stop_and_start() -> None:
    def load(now: float) -> tuple[float, int]:
        return (3 * RULE.threshold_seconds, 0) if now % 240 < 120 else (0.0, 1)

    assert min(replicas_over(7200, load, replicas=3)) == 3


def test_simulated_fleet_ends_every_job_once_while_workers_come_and_go() -> None:
    (pipeline,) = make_pipelines(1)
    day = make_day(400, pipeline, random.Random(3))
    step_ms = {stage: {rows: 60 * ms for rows, ms in each.items()} for stage, each in STEP_MS.items()}
    rule = replace(RULE, stabilization_seconds=0.0, cooldown_seconds=60.0, rows=16)
    jobs = fresh(day)
    simulation = Scaled([pipeline], jobs, step_ms, Autoscaler(rule), load_seconds=60.0, drain_seconds=0.0)
    simulation.run()
    assert simulation.handed_back > 0
    assert all(job.images_left == 0 and job.ends > job.arrives for job in jobs)
    steps = sum(job.request.num_rows * sum(job.evaluations.values()) for job in jobs)
    assert sum(each.rows for each in simulation.everyone) == steps  # none is taken twice
