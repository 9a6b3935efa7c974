"""FID and sFID: the Frechet distance between two feature sets."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evaluation.features import Points, checked_points


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] (N - 1) of a feature set, float64.

    factor [N, D]: for fewer images than dimensions; the covariance is factor^T factor.
    """

    mean: Tensor
    covariance: Tensor
    factor: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features [N, ...]: pooled ones for FID, spatial ones, flattened here, for sFID.

        Raises: ValueError for fewer than 2 samples, and for NaN or infinity.
        """
        points = checked_points(features, 2, "the Frechet distance").centred()
        assert points.centre is not None
        factor = factor_of(points.rows(slice(None))) if len(points) < points.width else None
        return cls(points.centre, scatter(points) / (len(points) - 1), factor)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric root of the covariance, [D, D]."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def factor_of(centred: Tensor) -> Tensor:
    """The factor of points [N, D] minus their mean."""
    return centred / math.sqrt(len(centred) - 1)


def scatter(points: Points) -> Tensor:
    """The sum of x x^T over all points, [D, D]."""
    total = torch.zeros(points.width, points.width, dtype=torch.float64)
    for part in points.parts():
        total.addmm_(part.T, part)
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2), by eigenvalues of the symmetric A^1/2 B A^1/2.

    Source: Heusel et al. 2017, Eq. 6. The symmetric form has real eigenvalues also for singular covariances, for which
    the official matrix root falls back to a shifted diagonal. For N images in D > N dimensions, the N non-zero
    eigenvalues are those of F A F^T, where B = F^T F.
    Raises: ValueError if the two have features of different sizes.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"the sets have features of {len(a.mean)} and {len(b.mean)} dimensions; they must have the same"
        )
    if b.factor is not None:
        product = b.factor @ a.covariance @ b.factor.T
    elif a.factor is not None:
        product = a.factor @ b.covariance @ a.factor.T
    else:
        product = a.root @ b.covariance @ a.root
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross)
