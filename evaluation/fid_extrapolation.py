"""FID of infinitely many samples (Chong and Forsyth 2020): the bias of N images is nearly a / N, so a line through the
FIDs of growing parts of the samples, over 1 / N, has the unbiased value at 0.

The reference is not extrapolated: its number of images adds the same bias for every set that is compared with it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evaluation.features import Points
from evaluation.frechet import Moments, factor_of, frechet_distance

PARTS = 5  # parts of the samples; the largest is all of them
SMALLEST = 0.1  # share of the samples in the first part, as in the paper: 5,000 of 50,000
IMAGES_A_DIMENSION = 5  # in the first part, which is at most half of the samples; with fewer the bias is not a / N
LEAST_IMAGES = 100  # fewest samples; with fewer, the line is meaningless


def part_sizes(blocks: Sequence[Tensor], width: int) -> list[int]:
    """The number of blocks of each part, evenly from the first part to all."""
    images = sum(map(len, blocks))
    wanted = max(SMALLEST, min(IMAGES_A_DIMENSION * width / images, 0.5))
    first = max(2, round(wanted * len(blocks)))
    return sorted({round(first + (len(blocks) - first) * step / (PARTS - 1)) for step in range(PARTS)})


def growth(reference: Moments, sample: Points, blocks: Sequence[Tensor]) -> list[tuple[int, float]]:
    """The number of images and the FID of growing parts of the samples. sample: points minus a centre."""
    return [
        (count, frechet_distance(reference, moments))
        for count, moments in growing_moments(sample, blocks, part_sizes(blocks, sample.width))
    ]


def extrapolated(found: Sequence[tuple[int, float]]) -> float:
    """The extrapolated FID; may be below 0 if the distributions are equal."""
    count, distance = torch.tensor(found, dtype=torch.float64).unbind(1)
    inverse = 1 / count
    centred = inverse - inverse.mean()
    slope = (centred * distance).sum() / centred.square().sum()
    return float(distance.mean() - slope * inverse.mean())


def growing_moments(sample: Points, blocks: Sequence[Tensor], sizes: Sequence[int]) -> Iterator[tuple[int, Moments]]:
    """The number of images and the moments of the first blocks, for each size in ascending order."""
    assert sample.centre is not None
    total = torch.zeros(sample.width, dtype=torch.float64)
    scatter = torch.zeros(sample.width, sample.width, dtype=torch.float64)
    count, rows = 0, sample.rows(slice(0, 0))
    for number, block in enumerate(blocks, start=1):
        part = sample.rows(block)
        rows = torch.cat([rows, part]) if count + len(part) < sample.width else rows[:0]
        count += len(part)
        total += part.sum(dim=0)
        scatter.addmm_(part.T, part)
        if number in sizes:
            shift = total / count
            covariance = (scatter - count * shift.outer(shift)) / (count - 1)
            factor = factor_of(rows - shift) if count < sample.width else None
            yield count, Moments(sample.centre + shift, covariance, factor)
