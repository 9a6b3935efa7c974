"""FID and sFID: the Frechet distance between two feature sets."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] (N - 1) of a feature set, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Shapes: features [N, ...], N > 1; FID takes pooled features, sFID spatial ones, flattened here."""
        exact = features.flatten(1).double()
        return cls(exact.mean(dim=0), torch.cov(exact.T).reshape(exact.shape[1], exact.shape[1]))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), by eigenvalues of the symmetric A^1/2 B A^1/2.

    Source: Heusel et al. 2017, Eq. 6. The symmetric form has real eigenvalues also for singular covariances, where the
    official matrix root falls back to a shifted diagonal.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross)
