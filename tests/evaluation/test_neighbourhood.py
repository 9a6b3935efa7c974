"""The metrics of neighbours, against brute force and `precision_recall`, also without each block of images."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.neighbourhood import Estimates, neighbourhood
from evaluation.precision_recall import precision_recall
from evaluation.resampling import Draws

NAMES = ("precision", "recall", "density", "coverage", "authenticity")


def features(seed: int, count: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(sample: torch.Tensor, reference: torch.Tensor, number: int = 4) -> dict[str, Estimates]:
    estimates, _ = neighbourhood(
        sample, reference, Draws(len(sample)).blocks(number), Draws(len(reference)).blocks(number)
    )
    return {name: estimates[name] for name in NAMES}


def density_coverage(sample: list[list[float]], reference: list[list[float]], k: int = 5) -> tuple[float, float]:
    """Naeem et al. 2020, Eq. 2 and 3, in plain numbers; a list sorted by distance begins with the point itself."""
    radii = [sorted(math.dist(x, other) for other in reference)[k] for x in reference]
    inside = [[math.dist(x, y) <= radius for y in sample] for x, radius in zip(reference, radii, strict=True)]
    return sum(map(sum, inside)) / (k * len(sample)), sum(map(any, inside)) / len(reference)


def authenticity(sample: list[list[float]], reference: list[list[float]]) -> float:
    """Alaa et al. 2022, Eq. 8, in plain numbers."""
    authentic = 0
    for x in sample:
        nearest = min(reference, key=lambda other: math.dist(x, other))
        own = sorted(math.dist(nearest, other) for other in reference)[1]
        authentic += math.dist(x, nearest) > own
    return authentic / len(sample)


def direct(sample: torch.Tensor, reference: torch.Tensor) -> list[float]:
    balls = precision_recall(reference, sample)
    sets = sample.tolist(), reference.tolist()
    return [float(balls.precision), float(balls.recall), *density_coverage(*sets), authenticity(*sets)]


@given(seed=st.integers(0, 99), shift=st.floats(0, 2))
def test_values_are_what_their_definitions_say(seed: int, shift: float) -> None:
    sample, reference = features(seed, 9) + shift, features(seed + 1, 12)
    assert [each.value for each in found(sample, reference, 3).values()] == pytest.approx(direct(sample, reference))


@pytest.mark.parametrize("counts", [(30, 40), (100, 70)])
def test_values_without_a_block_are_those_of_the_other_images(counts: tuple[int, int]) -> None:
    """The larger sets have more images than neighbours are looked at."""
    sets = [features(0, counts[0]) + 0.5, features(1, counts[1])]
    estimates = found(sets[0], sets[1], 7)
    for side in range(2):
        for number, block in enumerate(Draws(counts[side]).blocks(7)):
            left = list(sets)
            left[side] = left[side][[index not in block for index in range(counts[side])]]
            without = [(each.without_samples, each.without_reference)[side] for each in estimates.values()]
            got = [float(each[number]) for each in without]
            assert got == pytest.approx(direct(left[0], left[1]))


def test_copies_of_one_outlier_are_dense_and_cover_little() -> None:
    """Each sample is in six balls of a line's end: its own and those of its five neighbours. Precision would be 1."""
    line = torch.arange(20, dtype=torch.float64)[:, None]
    estimates = found(line[:1].repeat(9, 1), line)
    assert estimates["precision"].value == 1
    assert estimates["coverage"].value < 0.3
    assert (estimates["density"].value, estimates["coverage"].value) == density_coverage([[0.0]] * 9, line.tolist())


def test_distant_sets_do_not_meet() -> None:
    assert [each.value for each in found(features(0, 9) + 1000, features(1, 9)).values()] == [0, 0, 0, 0, 1]


def test_nearest_reference_images_are_named_with_their_distances() -> None:
    sample, reference = features(0, 9), features(1, 12)
    _, nearest = neighbourhood(sample, reference, Draws(9).blocks(3), Draws(12).blocks(3))
    distances = torch.cdist(sample, reference)
    assert nearest.index.tolist() == distances.argmin(dim=1).tolist()
    assert nearest.distance.tolist() == pytest.approx(distances.min(dim=1).values.tolist())
    within = torch.cdist(reference, reference).fill_diagonal_(math.inf)
    assert nearest.within_reference.tolist() == pytest.approx(within.min(dim=1).values.tolist())


def test_copies_are_not_authentic() -> None:
    reference = features(0, 30)
    estimates, nearest = neighbourhood(reference[:9], reference, Draws(9).blocks(3), Draws(30).blocks(3))
    assert estimates["authenticity"].value == 0
    assert nearest.distance.tolist() == [0] * 9


@pytest.mark.parametrize(
    ("reference", "sample", "message"),
    [
        (features(0, 5), features(1, 9), "density and coverage: a set has 5 samples, fewer than 6"),
        (features(0, 9), features(1, 9) / 0, "density and coverage: sample 0 of 9 has NaN or infinity in its features"),
        (features(0, 9), features(1, 9, 4), "the sets have features of 3 and 4 dimensions; they must have the same"),
    ],
)
def test_sets_without_a_score_are_refused_in_one_line(
    reference: torch.Tensor, sample: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        found(sample, reference)
