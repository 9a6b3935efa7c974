"""Precision, recall, density, coverage and authenticity in one pass, and each with one block of images left out.

Precision and recall are those of `precision_recall` (Kynkaanniemi et al. 2019). Density and coverage (Naeem et al.
2020) use only balls around the reference. Density is the mean number of balls that contain a sample, divided by the
number of neighbours; it is 1 for equal sets. Coverage is the share of the balls that contain a sample. Balls are
closed. Authenticity (Alaa et al. 2022) is the share of samples that are farther from their nearest reference image than
that image is from its own nearest neighbour in the reference: 1/2 or more for independent sets, near 0 for copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.features import Points, centred_pair
from evaluation.precision_recall import BLOCK, blocks_of_distances

NEAREST, PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR = 1, 3, 5  # as in the papers
LEAST = DENSITY_NEIGHBOUR + 1
REACH = 40  # nearest neighbours that are kept, to find one that is not in a left-out block

Blocks = Sequence[Tensor]


class Estimates(NamedTuple):
    """A metric for all images, without each block of samples, and without each block of the reference."""

    value: float
    without_samples: Tensor
    without_reference: Tensor


@dataclass(frozen=True)
class Nearest:
    """The reference image nearest to each sample, its index and distance [M]; and for each reference image [N] the
    distance to the nearest other one. Copies are nearer to the reference than its own images are to each other."""

    index: Tensor
    distance: Tensor
    within_reference: Tensor


def neighbourhood(
    sample: Tensor, reference: Tensor, ours: Blocks, theirs: Blocks
) -> tuple[dict[str, Estimates], Nearest]:
    """Shapes: sample [M, D], reference [N, D].

    ours, theirs: blocks of their indices; with any one block left out, at least LEAST images must remain.
    Raises: ValueError for fewer than LEAST images, NaN or infinity, and features of different sizes in the two sets.
    """
    centres, points = centred_pair(reference, sample, LEAST, "density and coverage")
    neighbours = (NEAREST, PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR)
    first, narrow, wide = squared_radii_without(centres, neighbours, theirs)
    (around_samples,) = squared_radii_without(points, (PRECISION_NEIGHBOUR,), ours)
    of_samples, nearest = _seen_from_samples(points, centres, first, narrow, ours, theirs)
    return of_samples | _seen_from_reference(points, centres, around_samples, wide, ours, theirs), nearest


def squared_radii_without(centres: Points, neighbours: Sequence[int], blocks: Blocks) -> list[Tensor]:
    """For each number of neighbours [1 + B, N]: the squared radii among all centres, then without each block.

    Radii of the left-out block itself are -1, so that these balls are empty. Neighbours are counted from 1; 0 is the
    point itself.
    """
    block_of = _block_of(len(centres), blocks)
    reach = min(REACH, len(centres))
    parts: list[list[Tensor]] = [[] for _ in neighbours]
    for distances in blocks_of_distances(centres, centres, BLOCK):
        nearest = distances.topk(reach, dim=1, largest=False, sorted=True)
        kept_before = _kept(block_of[nearest.indices], blocks).cumsum(dim=2)
        for radii, neighbour in zip(parts, neighbours, strict=True):
            place = (kept_before <= neighbour).sum(dim=2).clamp(max=reach - 1)
            radii.append(nearest.values.gather(1, place.T).T)
    found = [torch.cat(radii, dim=1) for radii in parts]
    for each in found:
        for number, block in enumerate(blocks):
            each[1 + number, block] = -1
    return found


def _block_of(count: int, blocks: Blocks) -> Tensor:
    block_of = torch.empty(count, dtype=torch.int64)
    for number, block in enumerate(blocks):
        block_of[block] = number
    return block_of


def _kept(of_block: Tensor, blocks: Blocks) -> Tensor:
    """[1 + B, n, R]: which of the neighbours [n, R] exist among all, and without each block."""
    return torch.stack([of_block >= 0, *(of_block != number for number in range(len(blocks)))])


def _seen_from_samples(
    points: Points, centres: Points, first: Tensor, narrow: Tensor, ours: Blocks, theirs: Blocks
) -> tuple[dict[str, Estimates], Nearest]:
    """Precision and authenticity: samples against balls around the reference, and the nearest of its images."""
    block_of = _block_of(len(centres), theirs)
    variants = torch.arange(1 + len(theirs))[:, None]
    inside, authentic, indices, squares = [], [], [], []
    for distances in blocks_of_distances(points, centres, BLOCK):
        inside.append(torch.stack([(distances <= radii).any(dim=1) for radii in narrow], dim=1))
        near = distances.topk(min(REACH, len(centres)), dim=1, largest=False, sorted=True)
        place = _kept(block_of[near.indices], theirs).int().argmax(dim=2)  # the first kept neighbour
        index = near.indices.gather(1, place.T).T
        authentic.append((first[variants, index] < near.values.gather(1, place.T).T).T)
        indices.append(near.indices[:, 0])
        squares.append(near.values[:, 0])
    estimates = {}
    for name, parts in (("precision", inside), ("authenticity", authentic)):
        values = torch.cat(parts).double()
        shares = values.mean(dim=0)
        estimates[name] = Estimates(float(shares[0]), _means_without(values[:, 0], ours), shares[1:])
    return estimates, Nearest(torch.cat(indices), torch.cat(squares).clamp(min=0).sqrt(), first[0].sqrt())


def _seen_from_reference(
    points: Points, centres: Points, around_samples: Tensor, wide: Tensor, ours: Blocks, theirs: Blocks
) -> dict[str, Estimates]:
    """Recall: the reference against balls around samples; density and coverage: the samples in balls around it."""
    inside, counts, of_blocks = [], [], []
    # numbers of samples in each of n balls. counts: [1 + B, n], a row for all of the reference and for each left-out
    # block of it; of_blocks: [n, A], a column for each block of samples
    for distances, part in zip(blocks_of_distances(centres, points, BLOCK), wide.split(BLOCK, dim=1), strict=True):
        inside.append(torch.stack([(distances <= radii).any(dim=1) for radii in around_samples], dim=1))
        counts.append(torch.stack([(distances <= each[:, None]).sum(dim=1) for each in part]))
        within = distances <= part[0][:, None]
        of_blocks.append(torch.stack([within[:, block].sum(dim=1) for block in ours], dim=1))
    covered = torch.cat(inside).double()
    shares = covered.mean(dim=0)
    counted = torch.cat(counts, dim=1).double()
    counted_without = counted[0][:, None] - torch.cat(of_blocks)
    kept = torch.tensor([len(points) - len(block) for block in ours])
    centres_kept = torch.tensor([len(centres), *(len(centres) - len(block) for block in theirs)])
    density = counted.sum(dim=1) / (DENSITY_NEIGHBOUR * len(points))
    coverage = (counted > 0).sum(dim=1).double() / centres_kept
    return {
        "recall": Estimates(float(shares[0]), shares[1:], _means_without(covered[:, 0], theirs)),
        "density": Estimates(float(density[0]), counted_without.sum(dim=0) / (DENSITY_NEIGHBOUR * kept), density[1:]),
        "coverage": Estimates(float(coverage[0]), (counted_without > 0).double().mean(dim=0), coverage[1:]),
    }


def _means_without(values: Tensor, blocks: Blocks) -> Tensor:
    total = values.sum()
    return torch.stack([(total - values[block].sum()) / (len(values) - len(block)) for block in blocks])
