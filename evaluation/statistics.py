"""Distances between feature sets and intervals of shares."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] (N - 1) of a feature set, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Shapes: features [N, D], N > 1."""
        exact = features.double()
        return cls(exact.mean(dim=0), torch.cov(exact.T).reshape(exact.shape[1], exact.shape[1]))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), by eigenvalues of the symmetric A^1/2 B A^1/2.

    Source: Heusel et al. 2017, Eq. 6. The symmetric form has real eigenvalues also for singular covariances.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): sound also near 0 and 1."""
    share = hits / total
    spread = Z_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of a mean, by its standard error: [N] values."""
    half = Z_95 * float(values.double().std()) / math.sqrt(len(values))
    mean = float(values.double().mean())
    return mean - half, mean + half
