"""Precision and recall: laws that hold for every pair of sets."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.features import Points
from evaluation.precision_recall import precision_recall, squared_radii


def features(seed: int, count: int, width: int = 5, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


@given(seed=st.integers(0, 99), count=st.integers(4, 30))
def test_a_set_covers_itself(seed: int, count: int) -> None:
    points = features(seed, count)
    found = precision_recall(points, points)
    assert (float(found.precision), float(found.recall)) == (1, 1)


@given(seed=st.integers(0, 99), shift=st.floats(0, 3))
def test_precision_one_way_is_recall_the_other_way(seed: int, shift: float) -> None:
    a, b = features(seed, 20), features(seed + 1, 15, shift=shift)
    there, back = precision_recall(a, b, (1, 3)), precision_recall(b, a, (1, 3))
    assert torch.equal(there.precision, back.recall)
    assert torch.equal(there.recall, back.precision)


@given(seed=st.integers(0, 99), block=st.integers(1, 25))
def test_the_block_size_changes_nothing(seed: int, block: int) -> None:
    a, b = features(seed, 20), features(seed + 1, 17, shift=0.5)
    whole, parts = precision_recall(a, b, (2,)), precision_recall(a, b, (2,), block)
    assert torch.equal(whole.precision, parts.precision)
    assert torch.equal(whole.recall, parts.recall)


@given(seed=st.integers(0, 99))
def test_a_larger_neighbourhood_covers_no_less(seed: int) -> None:
    found = precision_recall(features(seed, 25), features(seed + 1, 25, shift=1), (1, 2, 4, 8))
    assert bool((found.precision.diff() >= 0).all())
    assert bool((found.reference_radii.diff(dim=1) >= 0).all())


def test_distant_sets_do_not_meet() -> None:
    found = precision_recall(features(0, 20), features(1, 20, shift=1000))
    assert (float(found.precision), float(found.recall)) == (0, 0)


def test_copies_are_within_a_ball_of_radius_0_also_far_from_the_origin() -> None:
    point = features(0, 1, shift=10_000).repeat(5, 1)
    assert squared_radii(Points(point), (3,)).unique().tolist() == [0]
    assert float(precision_recall(point, point).precision) == 1


@given(seed=st.integers(0, 99), shift=st.sampled_from([1e6, -1e8, 1e10]), width=st.integers(1, 5))
def test_translation_changes_nothing(seed: int, shift: float, width: int) -> None:
    """The translation may move only some features: a feature with one value everywhere adds no distance."""
    a, b = (features(seed + i, 30, shift=0.5 * i).double() for i in range(2))
    moved = torch.zeros(5, dtype=torch.float64)
    moved[:width] = shift
    here, there = precision_recall(a, b), precision_recall(a + moved, b + moved)
    assert torch.equal(here.precision, there.precision)
    assert torch.equal(here.recall, there.recall)


def test_outliers_do_not_blur_the_others() -> None:
    """They move the mean far from all of them, and their own balls have radius 0."""
    a, b = features(0, 40).double(), features(1, 40, shift=0.5).double()
    far = torch.full((5, 5), 1e9, dtype=torch.float64)
    with_outliers = precision_recall(torch.cat([a, far]), torch.cat([b, -far]))
    assert float(with_outliers.precision) * 45 == pytest.approx(float(precision_recall(a, b).precision) * 40)


@pytest.mark.parametrize(
    ("reference", "sample", "message"),
    [
        (features(0, 3), features(1, 9), "precision and recall: a set has 3 samples, fewer than 4"),
        (features(0, 9), features(1, 0), "precision and recall: a set has 0 samples, fewer than 4"),
        (features(0, 9), features(1, 9) / 0, "precision and recall: sample 0 of 9 has NaN or infinity in its features"),
        (features(0, 9), features(1, 9, 4), "the sets have features of 5 and 4 dimensions; they must have the same"),
    ],
)
def test_sets_without_a_score_are_refused_in_one_line(
    reference: torch.Tensor, sample: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        precision_recall(reference, sample)
