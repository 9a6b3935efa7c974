"""Estimated step costs are near the measured times, despite single outliers."""

import pytest

from engine.costs import StepCosts
from engine.scheduler import Scheduler

ROWS = 32
SHAPES = (1, 2, 4, 8, 16, ROWS)
TRUE = {1: 0.06, 2: 0.08, 4: 0.11, 8: 0.16, 16: 0.22, ROWS: 0.32}


def measured(slow: dict[int, float]) -> StepCosts:
    """Costs as measured at a start on a busy machine: `slow` maps a row shape to the factor by which it was slower."""
    costs = StepCosts({"base": SHAPES})
    for shape in SHAPES:
        costs.note("base", shape, TRUE[shape] * slow.get(shape, 1.0))
    return costs


def rows_of_steps(costs: StepCosts, steps: int) -> list[int]:
    """The batch sizes that a scheduler chooses for 64 images without end."""
    line = Scheduler[int](costs, ROWS)
    for each in range(2 * ROWS):
        line.enter(each, f"job-{each}", "normal", (("base", 10**6),))
    taken = []
    for _ in range(steps):
        choice = line.choose()
        assert choice is not None
        costs.note("base", choice.row_shape, TRUE[choice.row_shape])
        line.moved(choice.keys)
        taken.append(len(choice.keys))
    return taken


def test_shape_that_was_given_up_is_not_measured_again() -> None:
    """A step at that shape may have been launched before, and retired after."""
    costs = measured({})
    costs.keep("base", (1, 2))
    costs.note("base", 4, 0.01)
    assert costs.measured_ms("base").keys() == {1, 2}
    assert costs.row_seconds("base") == TRUE[2] / 2


@pytest.mark.parametrize("factor", [3.0, 10.0])
def test_full_batch_that_was_slow_once_is_tried_again(factor: float) -> None:
    assert set(rows_of_steps(measured({ROWS: factor}), 600)[-100:]) == {ROWS}


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_shape_that_was_quick_once_is_soon_known_to_be_slow(shape: int) -> None:
    assert set(rows_of_steps(measured({shape: 0.1}), 100)[-50:]) == {ROWS}


def test_what_a_step_takes_is_learned_within_a_few_and_smoothed_after() -> None:
    costs = measured({ROWS: 10.0})
    for _ in range(8):
        costs.note("base", ROWS, TRUE[ROWS])
    assert costs.seconds("base", ROWS) < 2.5 * TRUE[ROWS]
    for _ in range(50):
        costs.note("base", ROWS, TRUE[ROWS])
    costs.note("base", ROWS, 10 * TRUE[ROWS])
    assert costs.seconds("base", ROWS) < 2 * TRUE[ROWS]
