"""Intervals, against closed forms."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.intervals import mean_interval, wilson_interval


@given(total=st.integers(1, 1000), data=st.data())
def test_interval_of_a_share_contains_the_share_and_stays_within_0_and_1(total: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, total))
    low, high = wilson_interval(hits, total)
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1


def test_interval_of_a_share_is_the_published_example() -> None:
    low, high = wilson_interval(81, 263)  # Newcombe 1998, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_interval_of_a_mean_covers_it() -> None:
    low, high = mean_interval(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert low < 1.5 < high
