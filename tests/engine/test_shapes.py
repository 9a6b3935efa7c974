import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.shapes import CANDIDATES, agreeing_shapes, pad_rows, padded

PROPERTY = settings(max_examples=50)


class Compute:
    """Rows that come out by a tiny bit otherwise at some of the shapes, as kernels do."""

    def __init__(self, odd: tuple[int, ...]) -> None:
        self.odd = odd

    def __call__(self, rows: int) -> Tensor:
        return torch.arange(128.0)[:rows] + 2.0**-10 * (rows in self.odd)


def test_shapes_that_round_otherwise_are_left_out() -> None:
    assert agreeing_shapes(Compute((1, 4)), 32) == (2, 8, 16, 32)


def test_largest_shape_is_kept_even_where_it_stands_alone() -> None:
    assert agreeing_shapes(Compute((32,)), 32) == (32,)


def test_largest_shape_need_not_be_a_candidate() -> None:
    assert agreeing_shapes(Compute(()), 6) == (1, 2, 4, 6)
    assert agreeing_shapes(Compute(()), 1) == (1,)


@PROPERTY
@given(st.sets(st.sampled_from(CANDIDATES)), st.sampled_from(CANDIDATES))
def test_every_pair_of_kept_shapes_agrees(odd: set[int], max_rows: int) -> None:
    compute = Compute(tuple(odd))
    shapes = agreeing_shapes(compute, max_rows)
    assert shapes == tuple(sorted(set(shapes)))
    assert shapes[-1] == max_rows
    assert all(torch.equal(compute(rows), compute(max_rows)[:rows]) for rows in shapes)


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
