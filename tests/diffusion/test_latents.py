"""Interpolation on the sphere: laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion.latents import slerp


def noise(seed: int) -> Tensor:
    return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 99))
def test_ends_are_the_latents_themselves(seed: int) -> None:
    a, b = noise(seed), noise(seed + 100)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


@given(seed=st.integers(0, 99), fraction=st.floats(0, 1))
def test_unit_latents_stay_on_the_sphere_and_the_angle_grows_evenly(seed: int, fraction: float) -> None:
    a, b = (each / each.norm() for each in (noise(seed), noise(seed + 100)))
    mixed = slerp(a, b, fraction)
    assert float(mixed.norm()) == pytest.approx(1)
    whole = math.acos(float((a * b).sum()))
    assert math.acos(min(1.0, float((a * mixed).sum()))) == pytest.approx(fraction * whole, abs=1e-6)


@given(seed=st.integers(0, 99), fraction=st.floats(0, 1))
def test_backwards_is_the_same_way(seed: int, fraction: float) -> None:
    a, b = noise(seed), noise(seed + 100)
    torch.testing.assert_close(slerp(a, b, fraction), slerp(b, a, 1 - fraction))


def test_a_latent_and_itself_have_nothing_between_them() -> None:
    a = noise(0).float()
    assert torch.equal(slerp(a, a, 0.3), a)
