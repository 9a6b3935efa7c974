"""Between two latents."""

import torch
from torch import Tensor

NEARLY_PARALLEL = 1e-6  # radians; below, the spherical formula divides rounding by rounding


def way(first: Tensor, last: Tensor, count: int) -> list[Tensor]:
    """Latents evenly along the great circle from one to another, both ends included; one alone is the first."""
    return [slerp(first, last, i / max(count - 1, 1)) for i in range(count)]


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of two latents of one shape, from a at 0 to b at 1.

    Gaussian noise of many dimensions lies near a sphere, and a straight line would leave it: its middle is too short,
    and makes blurred images. Computed in float64.
    Source: Song et al. 2021 (DDIM), appendix D.5, Eq. 67.
    """
    first, second = a.double(), b.double()
    cosine = (first * second).sum() / (first.norm() * second.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < NEARLY_PARALLEL:
        mixed = (1 - fraction) * first + fraction * second
    else:
        mixed = (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * second) / angle.sin()
    return mixed.to(a.dtype)
