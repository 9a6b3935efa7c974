"""Distances and intervals, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.judging import add_noise, sharpness
from evaluation.statistics import Moments, frechet_distance, mean_interval, wilson_interval


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


@given(total=st.integers(1, 1000), data=st.data())
def test_interval_of_a_share_holds_the_share_and_stays_within_0_and_1(total: int, data: st.DataObject) -> None:
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


def test_noise_of_no_strength_changes_nothing_and_more_noise_changes_more() -> None:
    pixels = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    assert torch.equal(add_noise(pixels, 0, seed=0), pixels)
    mild, strong = (add_noise(pixels, strength, seed=0).float().std() for strength in (2, 32))
    assert mild < strong


def test_blur_is_less_sharp() -> None:
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(pixels.float(), 3, stride=1, padding=1).to(torch.uint8)
    assert sharpness(blurred) < sharpness(pixels)
