from collections.abc import Collection, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.row_shapes import FEW, POWERS, agreeing_shapes, candidates_for, compiled_candidates, pad_rows, padded

PROPERTY = settings(max_examples=50)


class Compute:
    """Rows that are off by 2^-10 in the shapes `off`, and by 1 at every other place in the shapes `placed`."""

    def __init__(self, off: Collection[int] = (), placed: Collection[int] = ()) -> None:
        self.off, self.placed = off, placed

    def __call__(self, rows: Sequence[int]) -> Tensor:
        places = torch.arange(len(rows)) % 2
        return torch.tensor(rows).float() + 2.0**-10 * (len(rows) in self.off) + places * (len(rows) in self.placed)


def test_shapes_that_round_otherwise_are_left_out() -> None:
    assert agreeing_shapes(Compute(off=(1, 4)), (1, 2, 4, 8, 16, 32), windows=1) == (2, 8, 16, 32)


def test_largest_shape_is_kept_even_where_it_stands_alone() -> None:
    assert agreeing_shapes(Compute(off=(32,)), (2, 8, 32), windows=1) == (32,)


def test_shape_in_which_a_rows_result_depends_on_its_place_is_left_out_even_the_largest() -> None:
    assert agreeing_shapes(Compute(placed=(4,)), (1, 2, 4, 8), windows=1) == (1, 2, 8)
    assert agreeing_shapes(Compute(placed=(8,)), (1, 2, 4, 8), windows=1) == (1, 2, 4)


def test_only_a_single_row_remains_if_the_place_matters_in_every_batch() -> None:
    assert agreeing_shapes(Compute(placed=(2, 4, 6)), (2, 4, 6), windows=1) == (1,)


@pytest.mark.parametrize(("max_rows", "shapes"), [(1, (2,)), (2, (2,)), (5, (2, 4, 6)), (32, (2, 4, 8, 16, 32))])
def test_rows_on_a_cpu_are_even_where_torch_computes_the_norms(max_rows: int, shapes: tuple[int, ...]) -> None:
    assert candidates_for(torch.device("cpu"), max_rows, evenly=True) == shapes


def test_a_gpu_and_a_cpu_with_norms_of_its_own_may_compute_a_single_row() -> None:
    assert candidates_for(torch.device("cuda"), 6, evenly=True) == (1, 2, 4, 6)
    assert candidates_for(torch.device("cpu"), 6, evenly=False) == (1, 2, 4, 6)


def test_row_counts_that_did_not_agree_are_not_compiled_again() -> None:
    def tried(agreed: Collection[int] | None) -> Sequence[int]:
        return compiled_candidates((1, 2, 4, 8), (1, 2, 4), agreed, generated_in_half=False)

    assert tried(None) == (1, 2, 4, 8)
    assert tried({2, 4, 8}) == (2, 4, 8)
    assert tried({8}) == (8,)


def test_few_row_counts_are_compiled_and_generated_convolutions_of_half_precision_for_one() -> None:
    powers = (2, 4, 8, 16, 32)
    assert compiled_candidates(powers, FEW, None, generated_in_half=False) == (2, 8, 32)
    assert compiled_candidates((1, *powers), FEW, None, generated_in_half=False) == (1, 8, 32)
    assert compiled_candidates(powers, FEW, None, generated_in_half=True) == (8,)
    assert compiled_candidates((2, 4), FEW, None, generated_in_half=True) == (4,)


@PROPERTY
@given(st.sets(st.sampled_from(POWERS)), st.sampled_from(POWERS))
def test_every_pair_of_kept_shapes_agrees(odd: set[int], largest: int) -> None:
    compute = Compute(odd)
    shapes = agreeing_shapes(compute, [rows for rows in POWERS if rows <= largest], windows=1)
    assert shapes == tuple(sorted(set(shapes)))
    assert shapes[-1] == largest
    assert all(torch.equal(compute(range(rows)), compute(range(largest))[:rows]) for rows in shapes)


@PROPERTY
@given(st.sets(st.integers(1, 64), min_size=1), st.data())
def test_batch_is_padded_to_the_smallest_shape_that_fits_it(shapes: set[int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, max(shapes)))
    assert padded(rows, sorted(shapes)) == min(shape for shape in shapes if shape >= rows)


@pytest.mark.parametrize("rows", [3, 5])
def test_padding_repeats_the_first_row_and_keeps_the_others(rows: int) -> None:
    x = torch.arange(6.0).reshape(3, 2)
    filled = pad_rows(x, rows)
    assert torch.equal(filled[:3], x)
    assert filled[3:].tolist() == [[0.0, 1.0]] * (rows - 3)
