"""KID, against brute force and against what it is an average of."""

import itertools
import math

import pytest
import torch

from evaluation.kernel_distance import KernelSums
from evaluation.resampling import Draws


def features(seed: int, count: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(x: list[list[float]], y: list[list[float]]) -> float:
    """The unbiased estimate as a sum over pairs, in plain numbers."""

    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(z: list[list[float]]) -> float:
        return sum(kernel(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def sums(x: torch.Tensor, y: torch.Tensor, number: int = 4) -> KernelSums:
    return KernelSums.of(x, y, Draws(len(x)).blocks(number), Draws(len(y)).blocks(number))


@pytest.mark.parametrize("number", [1, 3, 7])
def test_estimate_is_the_sum_over_pairs_whatever_the_blocks(number: int) -> None:
    x, y = features(0, 9), features(1, 7) + 0.3
    assert sums(x, y, number).whole() == pytest.approx(brute_force(x.tolist(), y.tolist()), rel=1e-10)


def test_estimate_is_the_mean_over_all_subsets() -> None:
    """That is why the estimate may use all images and needs no random subsets."""
    x, y = features(0, 6), features(1, 5)
    of_subsets = [
        brute_force(x[list(a)].tolist(), y[list(b)].tolist())
        for a in itertools.combinations(range(6), 3)
        for b in itertools.combinations(range(5), 3)
    ]
    assert sums(x, y).whole() == pytest.approx(sum(of_subsets) / len(of_subsets), rel=1e-10)


@pytest.mark.parametrize("side", [0, 1])
def test_estimates_without_a_block_are_those_of_the_other_images(side: int) -> None:
    sets = [features(0, 9), features(1, 8) + 0.3]
    found = list(sums(sets[0], sets[1]).left_out(side))
    for index, estimate in enumerate(found):
        parts = Draws(len(sets[side])).blocks(4)
        kept = list(sets)
        kept[side] = sets[side][torch.cat([part for place, part in enumerate(parts) if place != index])]
        assert estimate == pytest.approx(brute_force(kept[0].tolist(), kept[1].tolist()), rel=1e-10)
    assert len(found) == 4


def test_estimate_of_equal_distributions_is_zero_on_average() -> None:
    found = torch.tensor([sums(features(2 * seed, 20), features(2 * seed + 1, 20)).whole() for seed in range(100)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / math.sqrt(len(found))
    assert bool((found < 0).any())


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (features(0, 1), features(1, 9), "KID: a set has 1 sample, fewer than 2"),
        (features(0, 9), features(1, 9) / 0, "KID: sample 0 of 9 has NaN or infinity in its features"),
        (features(0, 9), features(1, 9, 4), "the sets have features of 3 and 4 dimensions; they must have the same"),
    ],
)
def test_sets_without_an_estimate_are_refused_in_one_line(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        sums(x, y)
