"""The Frechet distance, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.frechet import Moments, frechet_distance


@pytest.mark.parametrize("counts", [(9, 50), (50, 9), (9, 8)])
def test_few_images_in_many_dimensions_are_at_the_distance_of_their_moments(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(count, 12, dtype=torch.float64) + count / 50 for count in counts)
    moments = Moments.of(a), Moments.of(b)
    plain = [Moments(each.mean, each.covariance) for each in moments]
    assert frechet_distance(moments[0], moments[1]) == pytest.approx(frechet_distance(plain[0], plain[1]), rel=1e-6)


def test_distance_of_a_set_to_itself_is_zero() -> None:
    moments = Moments.of(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-9)


@given(shift=st.floats(-3, 3), a=st.floats(0.1, 4), b=st.floats(0.1, 4), width=st.integers(1, 6))
def test_distance_of_isotropic_gaussians_is_the_closed_form(shift: float, a: float, b: float, width: int) -> None:
    zero, eye = torch.zeros(width, dtype=torch.float64), torch.eye(width, dtype=torch.float64)
    got = frechet_distance(Moments(zero, a * eye), Moments(zero + shift, b * eye))
    assert got == pytest.approx(width * (shift**2 + (math.sqrt(a) - math.sqrt(b)) ** 2), abs=1e-9)


def test_distance_is_finite_and_symmetric_for_singular_covariances() -> None:
    generator = torch.Generator().manual_seed(1)
    few, more = torch.randn(5, 32, generator=generator), torch.randn(9, 32, generator=generator) + 1
    there = frechet_distance(Moments.of(few), Moments.of(more))
    assert there == pytest.approx(frechet_distance(Moments.of(more), Moments.of(few)), rel=1e-6)
    assert there > 0


def test_translation_of_both_sets_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60, 8, generator=generator, dtype=torch.float64)
    here = frechet_distance(Moments.of(a), Moments.of(b))
    there = frechet_distance(Moments.of(a + 1e7), Moments.of(b + 1e7))
    assert there == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(1, 4), "the Frechet distance: a set has 1 sample, fewer than 2"),
        (torch.tensor([[0.0], [1.0], [math.nan]]), "sample 2 of 3 has NaN or infinity in its features"),
        (torch.tensor([[math.inf], [1.0]]), "sample 0 of 2 has NaN or infinity in its features"),
    ],
)
def test_sets_without_moments_are_refused(features: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moments.of(features)


def test_features_of_other_sizes_have_no_distance() -> None:
    with pytest.raises(ValueError, match="features of 4 and 3 dimensions"):
        frechet_distance(Moments.of(torch.rand(9, 4)), Moments.of(torch.rand(9, 3)))
