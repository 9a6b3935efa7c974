"""Interpolation between two latents."""

import torch
from torch import Tensor

NEARLY_PARALLEL = 1e-6  # radians; at smaller angles the spherical formula divides one rounding error by another


def great_circle(first: Tensor, last: Tensor, count: int) -> list[Tensor]:
    """Latents at equal distances on the great circle from first to last, both included; only first if count is 1."""
    return [slerp(first, last, i / max(count - 1, 1)) for i in range(count)]


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of two latents of one shape, from a at 0 to b at 1.

    Gaussian noise of many dimensions lies near a sphere. A straight line leaves the sphere: its middle has too small a
    norm, and gives blurred images. Computed in float64.
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
