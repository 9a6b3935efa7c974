"""Intervals of any metric of two sets by the jackknife: the metric without each block of images.

A bootstrap draws images twice, and FID, which falls with the number of different images, would then be too high. Here
every image is used once or not at all, and the interval is centred on the value of all images.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import chdtr, stdtrit
from torch import Tensor

JACKKNIFE_BLOCKS = 20
SEED = 0
TOO_EVEN = 0.001  # lower quantile of chi-squared, below which counts are too even for independent draws


@dataclass(frozen=True)
class Figure:
    """A metric, the ends of its 95 % interval, and its bias against infinitely many images.

    None: too few images for an interval; the bias is not estimated.
    """

    value: float
    low: float | None = None
    high: float | None = None
    bias: float | None = None


@dataclass(frozen=True)
class Draws:
    """How a set's images were drawn: independently, or balanced by class; `classes` [count] then has their classes.

    Blocks of a balanced set must have all classes in equal shares, because a class that a block lacks by chance would
    change every metric far more than other images of the same classes do.
    """

    count: int
    classes: Tensor | None = None

    @classmethod
    def of(cls, probabilities: Tensor) -> "Draws":
        """Detect balance from the extractor's answers [N, C]: their counts are more even than chance would make them.

        Pearson's chi-squared against equal shares is below the 0.1 % quantile of independent draws.
        """
        count, classes = probabilities.shape
        answers = probabilities.argmax(dim=1)
        numbers = answers.bincount(minlength=classes).double()
        chi_squared = float((numbers - count / classes).square().sum() * classes / count)
        balanced = classes > 1 and int(numbers.min()) > 1 and chdtr(classes - 1, chi_squared) < TOO_EVEN
        return cls(count, answers if balanced else None)

    def blocks(self, number: int) -> list[Tensor]:
        """Indices in `number` blocks of nearly equal size, shuffled because sets are often sorted by class."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(SEED))
        if self.classes is not None:
            order = order[self.classes[order].argsort(stable=True)]
        return [order[index::number] for index in range(number)]

    def jackknife_blocks(self) -> list[Tensor]:
        """The blocks to leave out, in the number that divides the classes most evenly."""
        if self.classes is None:
            return self.blocks(min(JACKKNIFE_BLOCKS, self.count))
        sizes = self.classes.bincount()
        most = min(JACKKNIFE_BLOCKS, int(sizes.min()))

        def unevenness(number: int) -> float:
            larger = sizes % number  # blocks that have one more image of a class than others
            return float((larger * (number - larger)).sum()) / number**2

        return self.blocks(min(range(most, most // 2, -1), key=unevenness))


def jackknife(
    value: float, left_out: Sequence[Iterable[float]], low: float = -math.inf, high: float = math.inf
) -> Figure:
    """The jackknife interval from the metric without each block of each set (Quenouille, Tukey 1958).

    left_out: the estimates of each set. low, high: bounds of the metric.
    """
    variance, bias, freedom = 0.0, 0.0, math.inf
    for estimates in left_out:
        found = torch.tensor(list(estimates), dtype=torch.float64)
        others = len(found) - 1
        if others < 1:
            return Figure(value)
        variance += others * float(found.var(correction=0))
        bias += others * (float(found.mean()) - value)
        freedom = min(freedom, others)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return Figure(value, max(value - half, low), min(value + half, high), bias)
