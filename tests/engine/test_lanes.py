"""Lanes: every row is computed once, in parts of the given shapes, at the same time, and failures come out."""

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.lanes import Lanes, Rows, compute_rows, divide
from engine.row_shapes import padded

SHAPES = (2, 4, 8, 16, 32)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_results_stand_in_the_order_of_the_tasks(lanes: int) -> None:
    assert Lanes(lanes).run([lambda each=each: each for each in range(7)]) == list(range(7))  # type: ignore[misc]  # mypy has no type for it


def test_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3)
    Lanes(3).run([lambda: meeting.wait(60)] * 3)  # each waits for the others


def test_the_callers_thread_is_a_lane() -> None:
    assert threading.get_ident() in Lanes(2).run([threading.get_ident])


def test_an_exception_is_raised_when_all_tasks_have_ended() -> None:
    failed, ended = threading.Event(), threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("broken")

    def work() -> None:
        assert failed.wait(60)
        ended.set()

    with pytest.raises(ValueError, match="broken"):
        Lanes(2).run([fail, work])
    assert ended.is_set()


@pytest.mark.slow
def test_each_lane_computes_on_one_thread() -> None:
    """OpenMP would start a thread for each core at the first operation of a lane."""
    program = (
        "import threading, psutil, torch;"
        "torch.set_num_threads(1);"
        "from engine.lanes import Lanes;"
        "lanes, meeting = Lanes(2), threading.Barrier(2);"
        "x, w = torch.zeros(32, 64, 64, 64), torch.zeros(64, 64, 3, 3);"
        "lanes.run([meeting.wait, meeting.wait]);"
        "before = psutil.Process().num_threads();"
        "compute = lambda: (meeting.wait(), torch.mkldnn_convolution(x, w, None, (1, 1), (1, 1), (1, 1), 1));"
        "lanes.run([compute, compute]);"
        "print(psutil.Process().num_threads() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0"


@settings(max_examples=200)
@given(rows=st.integers(1, 32), guided=st.integers(0, 32), lanes=st.integers(1, 6))
def test_rows_are_divided_without_rest_into_parts_that_fit_the_shapes(rows: int, guided: int, lanes: int) -> None:
    asked = tuple((count, SHAPES) for count in (rows, guided) if count)
    plans = divide(asked, lanes)
    for (count, _), sizes in zip(asked, plans, strict=True):
        assert sum(sizes) == count
        assert len(sizes) <= lanes
        assert all(size in SHAPES for size in sizes[:-1])


def test_a_lone_guided_image_has_its_network_and_its_guide_computed_at_the_same_time() -> None:
    assert divide(((1, SHAPES), (1, SHAPES)), 2) == [[1], [1]]


def test_a_full_batch_is_divided_among_all_lanes() -> None:
    assert divide(((32, SHAPES),), 2) == [[16, 16]]
    assert divide(((32, SHAPES), (32, SHAPES)), 4) == [[16, 16], [16, 16]]


def test_few_rows_are_not_divided_further_than_pays() -> None:
    assert divide(((2, SHAPES),), 2) == [[2]]


@settings(max_examples=50)
@given(rows=st.integers(1, 40), lanes=st.integers(1, 4))
def test_results_are_those_of_the_rows_whatever_the_parts(rows: int, lanes: int) -> None:
    computed = []

    def double(x: Tensor) -> Tensor:
        computed.append(len(x))
        return 2 * x

    x = torch.arange(float(rows))[:, None]
    ((result, left),) = compute_rows(Lanes(lanes), [Rows(double, SHAPES, (x,))])
    assert torch.equal(result, 2 * x)
    assert left == SHAPES
    assert all(each == padded(each, SHAPES) for each in computed)
