"""KID: the squared maximum mean discrepancy of two feature sets under a polynomial kernel (Binkowski et al. 2018)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.features import Points, checked_pair


@dataclass(frozen=True)
class KernelSums:
    """Sums of the kernel between blocks of two sets: within [A, A] and [B, B] without the diagonal, across [A, B].

    sizes: images of each block. Every estimate that leaves blocks out is computed from these sums.
    """

    within: tuple[Tensor, Tensor]
    across: Tensor
    sizes: tuple[Tensor, Tensor]

    @classmethod
    def of(
        cls, sample: Tensor, reference: Tensor, sample_blocks: Sequence[Tensor], reference_blocks: Sequence[Tensor]
    ) -> "KernelSums":
        """Shapes: sample [N, D], reference [M, D]; blocks of indices.

        Only one block of the kernel matrix is in memory at a time.

        Raises: ValueError for fewer than 2 samples, NaN or infinity, and features of different dimensions.
        """
        ours, theirs = checked_pair(sample, reference, 2, "KID")
        across = [
            [polynomial_kernel(a, theirs.rows(block)).sum() for block in reference_blocks]
            for a in map(ours.rows, sample_blocks)
        ]
        return cls(
            (_within(ours, sample_blocks), _within(theirs, reference_blocks)),
            torch.tensor(across, dtype=torch.float64),
            (_sizes(sample_blocks), _sizes(reference_blocks)),
        )

    def estimate(self, sample_kept: Tensor, reference_kept: Tensor) -> float:
        """The unbiased estimate from the blocks that masks [A] and [B] keep; each side must keep 2 images or more."""
        within = 0.0
        for kept, sums, sizes in zip((sample_kept, reference_kept), self.within, self.sizes, strict=True):
            count = float(sizes[kept].sum())
            within += float(sums[kept][:, kept].sum()) / (count * (count - 1))
        pairs = float(self.sizes[0][sample_kept].sum() * self.sizes[1][reference_kept].sum())
        return within - 2 * float(self.across[sample_kept][:, reference_kept].sum()) / pairs

    def whole(self) -> float:
        """The estimate from all images. It equals the mean over all subsets, of which the literature averages some."""
        return self.estimate(*(torch.ones(len(sizes), dtype=torch.bool) for sizes in self.sizes))

    def left_out(self, side: int) -> Iterator[float]:
        """The estimates without each block of a side (0: the samples, 1: the reference)."""
        for block in range(len(self.sizes[side])):
            kept = [torch.ones(len(sizes), dtype=torch.bool) for sizes in self.sizes]
            kept[side][block] = False
            yield self.estimate(*kept)


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(a . b / D + 1)^3 for every pair: [N, M] of [N, D] and [M, D]."""
    kernel: Tensor = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def _within(points: Points, blocks: Sequence[Tensor]) -> Tensor:
    sums = torch.zeros(len(blocks), len(blocks), dtype=torch.float64)
    for i, a in enumerate(map(points.rows, blocks)):
        own = polynomial_kernel(a, a)
        sums[i, i] = own.sum() - own.diagonal().sum()
        for j in range(i):
            sums[i, j] = sums[j, i] = polynomial_kernel(a, points.rows(blocks[j])).sum()
    return sums


def _sizes(blocks: Sequence[Tensor]) -> Tensor:
    return torch.tensor([len(each) for each in blocks], dtype=torch.float64)
