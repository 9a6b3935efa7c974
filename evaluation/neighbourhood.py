"""Precision, recall, density and coverage at once, and each of them without each block of images.

Precision and recall are those of `precision_recall` (Kynkaanniemi et al. 2019). Density and coverage (Naeem et al.
2020) are by balls around the reference alone: how many of them a sample lies in, over the neighbour's number, which is
1 for equal sets; and the share of the balls that hold a sample. A ball holds its rim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.features import centred_features
from evaluation.precision_recall import BLOCK, blocks_of_distances

PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR = 3, 5  # as their authors have them
LEAST = DENSITY_NEIGHBOUR + 1
REACH = (
    40  # neighbours among which the one is sought that is left without a block: never are all but a few of one block
)

Blocks = Sequence[Tensor]


class Estimates(NamedTuple):
    """A metric of all images, without each block of samples, and without each block of the reference."""

    value: float
    without_samples: Tensor
    without_reference: Tensor


def neighbourhood(sample: Tensor, reference: Tensor, ours: Blocks, theirs: Blocks) -> dict[str, Estimates]:
    """Shapes: sample [M, D], reference [N, D]; blocks of their indices, which leave LEAST images each.

    Raises: ValueError for fewer than LEAST images, NaN or infinity, and features of other sizes.
    """
    reference, sample = centred_features(reference, sample, LEAST, "density and coverage")
    narrow, wide = squared_radii_without(reference, (PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR), theirs)
    (around_samples,) = squared_radii_without(sample, (PRECISION_NEIGHBOUR,), ours)
    precision, without_samples, without_reference = _share_inside(sample, reference, narrow, ours)
    recall, recall_without_reference, recall_without_samples = _share_inside(reference, sample, around_samples, theirs)
    return {
        "precision": Estimates(precision, without_samples, without_reference),
        "recall": Estimates(recall, recall_without_samples, recall_without_reference),
        **_density_coverage(sample, reference, wide, ours, theirs),
    }


def squared_radii_without(centres: Tensor, neighbours: Sequence[int], blocks: Blocks) -> list[Tensor]:
    """For each neighbour's number [1 + B, N]: the squared radii among all centres, then without each block.

    Those of the block itself are -1, so that they hold nothing. A neighbour's number counts from 1; 0 is the point
    itself.
    """
    block_of = torch.empty(len(centres), dtype=torch.int64)
    for number, block in enumerate(blocks):
        block_of[block] = number
    reach = min(REACH, len(centres))
    parts: list[list[Tensor]] = [[] for _ in neighbours]
    for distances in blocks_of_distances(centres, centres, BLOCK):
        nearest = distances.topk(reach, dim=1, largest=False, sorted=True)
        of_block = block_of[nearest.indices]
        kept_before = torch.stack(
            [(of_block >= 0).cumsum(dim=1), *((of_block != number).cumsum(dim=1) for number in range(len(blocks)))]
        )
        for radii, neighbour in zip(parts, neighbours, strict=True):
            place = (kept_before <= neighbour).sum(dim=2).clamp(max=reach - 1)
            radii.append(nearest.values.gather(1, place.T).T)
    found = [torch.cat(radii, dim=1) for radii in parts]
    for each in found:
        for number, block in enumerate(blocks):
            each[1 + number, block] = -1
    return found


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor, blocks: Blocks) -> tuple[float, Tensor, Tensor]:
    """The share of points in any ball: of all, without each block of points, without each of centres."""
    inside = torch.cat(
        [
            torch.stack([(distances <= each).any(dim=1) for each in radii], dim=1)
            for distances in blocks_of_distances(points, centres, BLOCK)
        ]
    ).double()
    shares = inside.mean(dim=0)
    return float(shares[0]), _means_without(inside[:, 0], blocks), shares[1:]


def _density_coverage(
    sample: Tensor, reference: Tensor, radii: Tensor, ours: Blocks, theirs: Blocks
) -> dict[str, Estimates]:
    counts, of_blocks = [], []  # samples in each ball: [1 + B, n] by how it was drawn, and [n, A] by their blocks
    for distances, part in zip(blocks_of_distances(reference, sample, BLOCK), radii.split(BLOCK, dim=1), strict=True):
        counts.append(torch.stack([(distances <= each[:, None]).sum(dim=1) for each in part]))
        inside = distances <= part[0][:, None]
        of_blocks.append(torch.stack([inside[:, block].sum(dim=1) for block in ours], dim=1))
    held = torch.cat(counts, dim=1).double()
    held_without = held[0][:, None] - torch.cat(of_blocks)
    kept = torch.tensor([len(sample) - len(block) for block in ours])
    centres_kept = torch.tensor([len(reference), *(len(reference) - len(block) for block in theirs)])
    density = held.sum(dim=1) / (DENSITY_NEIGHBOUR * len(sample))
    coverage = (held > 0).sum(dim=1).double() / centres_kept
    return {
        "density": Estimates(float(density[0]), held_without.sum(dim=0) / (DENSITY_NEIGHBOUR * kept), density[1:]),
        "coverage": Estimates(float(coverage[0]), (held_without > 0).double().mean(dim=0), coverage[1:]),
    }


def _means_without(values: Tensor, blocks: Blocks) -> Tensor:
    total = values.sum()
    return torch.stack([(total - values[block].sum()) / (len(values) - len(block)) for block in blocks])
