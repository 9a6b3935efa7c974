from collections.abc import Collection, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.shapes import CANDIDATES, agreeing_shapes, pad_rows, padded

PROPERTY = settings(max_examples=50)


class Compute:
    """Rows that come out by a tiny bit otherwise in some of the shapes, or at odd places of some, as kernels do."""

    def __init__(self, odd: Collection[int] = (), placed: Collection[int] = ()) -> None:
        self.odd, self.placed = odd, placed

    def __call__(self, rows: Sequence[int]) -> Tensor:
        places = torch.arange(len(rows)) % 2
        return torch.tensor(rows).float() + 2.0**-10 * (len(rows) in self.odd) + places * (len(rows) in self.placed)


def test_shapes_that_round_otherwise_are_left_out() -> None:
    assert agreeing_shapes(Compute(odd=(1, 4)), 32) == (2, 8, 16, 32)


def test_largest_shape_is_kept_even_where_it_stands_alone() -> None:
    assert agreeing_shapes(Compute(odd=(32,)), 32) == (32,)


def test_largest_shape_need_not_be_a_candidate() -> None:
    assert agreeing_shapes(Compute(), 6) == (1, 2, 4, 6)
    assert agreeing_shapes(Compute(), 1) == (1,)


def test_shape_in_which_a_row_can_tell_its_place_is_left_out_even_the_largest() -> None:
    assert agreeing_shapes(Compute(placed=(4,)), 32) == (1, 2, 8, 16, 32)
    assert agreeing_shapes(Compute(placed=(16, 32)), 32) == (1, 2, 4, 8)
    assert agreeing_shapes(Compute(placed=CANDIDATES), 32) == (1,)
    assert agreeing_shapes(Compute(placed=(2, 3)), 3, (2,)) == (1,)


def test_place_that_mattered_once_is_tried_again() -> None:
    compute, batches = Compute(), []

    def err_once(rows: Sequence[int]) -> Tensor:
        batches.append(rows)
        return compute(rows) + (len(batches) == 2)

    assert agreeing_shapes(err_once, 32) == (1, 2, 4, 8, 16, 32)


@PROPERTY
@given(st.sets(st.sampled_from(CANDIDATES)), st.sampled_from(CANDIDATES))
def test_every_pair_of_kept_shapes_agrees(odd: set[int], max_rows: int) -> None:
    compute = Compute(odd)
    shapes = agreeing_shapes(compute, max_rows)
    assert shapes == tuple(sorted(set(shapes)))
    assert shapes[-1] == max_rows
    assert all(torch.equal(compute(range(rows)), compute(range(max_rows))[:rows]) for rows in shapes)


@PROPERTY
@given(st.sets(st.integers(1, 64), min_size=1), st.data())
def test_batch_is_padded_to_the_smallest_shape_that_holds_it(shapes: set[int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, max(shapes)))
    assert padded(rows, sorted(shapes)) == min(shape for shape in shapes if shape >= rows)


@pytest.mark.parametrize("rows", [3, 5])
def test_padding_repeats_the_first_row_and_keeps_the_others(rows: int) -> None:
    x = torch.arange(6.0).reshape(3, 2)
    filled = pad_rows(x, rows)
    assert torch.equal(filled[:3], x)
    assert filled[3:].tolist() == [[0.0, 1.0]] * (rows - 3)
