"""Precision and recall of two feature sets by balls around neighbours (Kynkaanniemi et al. 2019)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.features import Points, centred_pair

OFFICIAL_NEIGHBOURS = (3,)
BLOCK = 500  # rows whose distances to all others are in memory: 200 MB for 50,000 others
CANCELLING = 1e-6  # share of the squared norms, below which a squared distance has lost its digits by cancellation
PAIRS = 10_000  # pairs whose differences are in memory: 160 MB for 2,048 features


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares and squared radii for every neighbourhood size K: precision, recall [K]; radii [N, K] and [M, K]."""

    precision: Tensor
    recall: Tensor
    reference_radii: Tensor
    sample_radii: Tensor


def precision_recall(
    reference: Tensor, sample: Tensor, neighbours: Sequence[int] = OFFICIAL_NEIGHBOURS, block: int = BLOCK
) -> PrecisionRecall:
    """The share of samples inside a ball of the reference, and of the reference inside a ball of the samples.

    Shapes: reference [N, D], sample [M, D]; a neighbour's number counts from 1. Everything is float64, and the mean of
    the reference is subtracted, so that an offset of features does not matter; the official evaluator rounds distances
    to float16, which is inaccurate for features far from the origin.
    Raises: ValueError if a set has too few points for the largest number of neighbours, for NaN or infinity, and for
    features of different sizes.
    """
    least = max(neighbours) + 1
    theirs, ours = centred_pair(reference, sample, least, "precision and recall")
    reference_radii = squared_radii(theirs, neighbours, block)
    sample_radii = squared_radii(ours, neighbours, block)
    inside, covered = (
        torch.zeros(len(neighbours), dtype=torch.int64),
        torch.zeros(len(neighbours), len(theirs), dtype=torch.bool),
    )
    blocks = zip(blocks_of_distances(ours, theirs, block), sample_radii.split(block), strict=True)
    # each distance is computed once for both, because computing takes longer than comparing
    for distances, radii in blocks:
        inside += torch.stack([(distances <= radius).any(dim=1).sum() for radius in reference_radii.T])
        covered |= torch.stack([(distances <= radius[:, None]).any(dim=0) for radius in radii.T])
    return PrecisionRecall(inside.double() / len(ours), covered.double().mean(dim=1), reference_radii, sample_radii)


def squared_radii(points: Points, neighbours: Sequence[int], block: int = BLOCK) -> Tensor:
    """The squared distance of every point to its neighbours with these numbers, [N, K]; 0 is the point itself."""
    columns = torch.tensor(neighbours)
    nearest = (
        distances.topk(max(neighbours) + 1, dim=1, largest=False, sorted=True).values
        for distances in blocks_of_distances(points, points, block)
    )
    return torch.cat([each[:, columns] for each in nearest])


def blocks_of_distances(rows: Points, columns: Points, block: int) -> Iterator[Tensor]:
    """Squared distances of `block` rows at a time to all columns, float64; both sets have the same centre."""
    for part in rows.parts(block):
        distances = part.new_empty(len(part), len(columns))
        start = 0
        for others in columns.parts():
            distances[:, start : start + len(others)] = _squared_distances(part, others)
            start += len(others)
        yield distances


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    row_norms, column_norms = (each.square().sum(dim=1) for each in (rows, columns))
    distances = torch.addmm(row_norms[:, None] + column_norms, rows, columns.T, alpha=-2)
    # Near points are subtracted directly, so that equal ones have distance 0: a ball of radius 0 contains exact copies.
    # A row's smallest distance shows whether it has near points.
    suspects = (distances.amin(dim=1) < CANCELLING * (row_norms + column_norms.max())).nonzero()[:, 0]
    cancelled = distances[suspects] < CANCELLING * (row_norms[suspects, None] + column_norms)
    for near in cancelled.nonzero().split(PAIRS):
        row, column = suspects[near[:, 0]], near[:, 1]
        distances[row, column] = (rows[row] - columns[column]).square().sum(dim=1)
    return distances
