"""Figures and their intervals: centred on the value, with the stated coverage."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evaluation.extractors import Features
from evaluation.frechet import Moments, frechet_distance
from evaluation.intervals import wilson_interval
from evaluation.resampling import Draws, Figure, jackknife
from evaluation.scores import (
    Statistics,
    all_scores,
    fid_infinity,
    frechet,
    frechet_distances,
    inception,
    kernel_distance,
    moments_without_blocks,
    neighbours,
    share,
)

NOMINAL = 0.95
REPEATS = 80


def drawn(generator: torch.Generator, count: int, width: int = 3, shift: float = 0.0) -> Tensor:
    return torch.randn(count, width, generator=generator) + shift


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(seed: int, count: int, width: int = 3) -> Features:
    pooled = drawn(seeded(seed), count, width)
    return Features(pooled, 2 * pooled, pooled.softmax(dim=1))


def moments_of(features: Features) -> Statistics:
    assert features.spatial is not None
    return Statistics(Moments.of(features.pooled), Moments.of(features.spatial))


def nothing(metric: str) -> None:
    pass


@pytest.mark.parametrize("count", [3, 20, 47])
def test_blocks_contain_every_image_once_and_mix_a_sorted_set(count: int) -> None:
    parts = Draws(count).blocks(min(count, 10))
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert torch.cat(parts).tolist() != list(range(count))


def test_jackknife_of_a_mean_is_its_standard_error_with_the_quantile_of_student() -> None:
    values = drawn(seeded(0), 20, 1)[:, 0].double()
    without = [float(torch.cat([values[:i], values[i + 1 :]]).mean()) for i in range(20)]
    figure = jackknife(float(values.mean()), [without])
    assert figure.low is not None
    assert figure.value - figure.low == pytest.approx(2.093024 * float(values.std()) / math.sqrt(20), rel=1e-6)
    assert figure.bias == pytest.approx(0, abs=1e-12)


def test_jackknife_finds_the_bias_of_a_variance_that_is_divided_by_n() -> None:
    """The textbook's case: -s^2 / N exactly."""
    values = drawn(seeded(0), 20, 1)[:, 0].double()
    without = [float(torch.cat([values[:i], values[i + 1 :]]).var(correction=0)) for i in range(20)]
    figure = jackknife(float(values.var(correction=0)), [without])
    assert figure.bias == pytest.approx(-float(values.var()) / 20)


def test_moments_without_a_block_are_those_of_the_other_images() -> None:
    points = drawn(seeded(0), 45, 3, shift=1000.0)
    for part, found in zip(Draws(45).blocks(20), moments_without_blocks(points, Draws(45)), strict=True):
        kept = torch.ones(45, dtype=torch.bool)
        kept[part] = False
        direct = Moments.of(points[kept])
        assert torch.allclose(found.mean, direct.mean)
        assert torch.allclose(found.covariance, direct.covariance)


def test_bias_of_fid_is_what_it_exceeds_the_distance_of_the_distributions_by() -> None:
    generator = seeded(0)
    found = [frechet(drawn(generator, 60), drawn(generator, 60), Draws(60), Draws(60)) for _ in range(40)]
    excess = sum(each.value for each in found) / 40  # equal distributions are at 0
    assert sum(each.bias or 0 for each in found) / 40 == pytest.approx(excess, abs=0.05)
    assert excess > 0.1


def figures(generator: torch.Generator) -> dict[str, Figure]:
    return figures_of(drawn(generator, 100), drawn(generator, 120, shift=0.5), Draws(100), Draws(120))


def figures_of(sample: Tensor, reference: Tensor, ours: Draws, theirs: Draws) -> dict[str, Figure]:
    own = {
        "fid": frechet(sample, reference, ours, theirs),
        "kid": kernel_distance(sample, reference, ours, theirs),
        "inception_score": inception((2 * sample).softmax(dim=1), ours),
    }
    own["fid_infinity"] = fid_infinity(sample, reference, ours, frechet_distances(sample, reference, ours, theirs))[0]
    return own | neighbours(sample, reference, ours, theirs)[0]


CENTRES = 4 * torch.eye(4)


def balanced(generator: torch.Generator, each: int, shift: float) -> tuple[Tensor, Draws]:
    """`each` points of every class; the centres of the classes are far apart."""
    classes = torch.arange(4).repeat(each)
    return drawn(generator, 4 * each, 4, shift) + CENTRES[classes], Draws(4 * each, classes)


def balanced_figures(generator: torch.Generator) -> dict[str, Figure]:
    (sample, ours), (reference, theirs) = balanced(generator, 25, 0.0), balanced(generator, 30, 0.3)
    return figures_of(sample, reference, ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("figures", [figures, balanced_figures])
def test_intervals_contain_the_expected_value_about_as_often_as_stated(
    figures: Callable[[torch.Generator], dict[str, Figure]],
) -> None:
    """Coverage over repeatedly drawn sets of the mean over all of them. Intervals of a bootstrap of FID have none."""
    generator = seeded(0)
    found = [figures(generator) for _ in range(REPEATS)]
    slack = 4 * math.sqrt(NOMINAL * (1 - NOMINAL) / REPEATS)
    for name in found[0]:
        expected = sum(each[name].value for each in found) / REPEATS
        share = sum((each[name].low or 0) <= expected <= (each[name].high or 0) for each in found) / REPEATS
        assert share >= NOMINAL - slack, name


def test_every_interval_contains_its_value() -> None:
    for figure in figures(seeded(1)).values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high


def test_a_share_of_all_of_few_images_is_not_certain() -> None:
    low, _ = wilson_interval(20, 20)
    assert share(Figure(1.0, 1.0, 1.0), 20) == Figure(1.0, low, 1.0)
    assert share(Figure(0.5, 0.1, 0.9), 20) == Figure(0.5, 0.1, 0.9)
    assert share(Figure(1.0, 0.5, 1.4), 20) == Figure(1.0, 0.5, 1.0)


def test_all_metrics_are_there_and_a_set_is_at_no_distance_from_itself() -> None:
    own = features(0, 40)
    scores = all_scores(own, own, nothing)
    found, notes = scores.figures, scores.notes
    of_neighbours = {"precision", "recall", "density", "coverage", "authenticity"}
    assert set(found) == {"fid", "sfid", "inception_score", "kid"} | of_neighbours
    assert found["fid"].value == pytest.approx(0, abs=1e-6)
    assert (found["precision"].value, found["recall"].value, found["coverage"].value) == (1, 1, 1)
    assert not any("equal numbers of images per class" in note for note in notes)


def test_few_images_are_reported_with_the_size_of_the_bias() -> None:
    scores = all_scores(features(0, 29), features(1, 400), nothing)
    found, notes = scores.figures, scores.notes
    (note,) = (each for each in notes if "few for FID" in each)
    assert note.startswith("29 images are few for FID in 3 dimensions (30 or more are better): the bias is ")
    assert note.endswith(f"about {found['fid'].bias:.3g}, of an FID of {found['fid'].value:.3g}")
    assert not any("few for FID" in each for each in all_scores(features(0, 30), features(1, 30), nothing).notes)


def test_pictures_beside_the_moments_serve_the_other_metrics() -> None:
    """The official reference files: moments of all of a data set's images, and 10,000 pictures of it."""
    sample, reference, beside = features(0, 40), features(1, 50), features(2, 30)
    moments = replace(moments_of(reference), features=beside)
    found = all_scores(sample, moments, nothing).figures
    assert found["fid"] == frechet(sample.pooled, moments.pooled, Draws(40), None)
    assert found["precision"] == all_scores(sample, beside, nothing).figures["precision"]


def test_extrapolated_fid_needs_enough_images_and_has_less_bias() -> None:
    generator = seeded(0)
    few = all_scores(features(0, 99), features(1, 400), nothing).figures
    assert "fid_infinity" not in few
    reference = Moments(torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64))
    found = []
    for _ in range(20):
        sample = drawn(generator, 200, 8)
        distances = frechet_distances(sample, reference, Draws(200), None)
        found.append((distances.value, fid_infinity(sample, reference, Draws(200), distances)[0].value))
    plain, extrapolated = (sum(each) / len(found) for each in zip(*found, strict=True))
    assert plain > 0.1
    assert abs(extrapolated) < plain / 5


def test_features_without_classes_and_places_give_all_metrics_but_those_of_classes_and_places() -> None:
    sample, reference = (Features(features(seed, 40).pooled, None, None) for seed in (0, 1))
    whole = all_scores(features(0, 40), features(1, 40), nothing).figures
    found = all_scores(sample, reference, nothing).figures
    assert set(found) == set(whole) - {"sfid", "inception_score"}
    assert all(found[name] == whole[name] for name in found)


def test_moments_alone_give_fid_and_sfid_and_the_score_of_the_samples() -> None:
    sample, reference = features(0, 40), features(1, 50)
    moments = moments_of(reference)
    scores = all_scores(sample, moments, nothing)
    found, notes = scores.figures, scores.notes
    assert set(found) == {"fid", "sfid", "inception_score"}
    assert found["fid"].value == frechet_distance(Moments.of(reference.pooled), Moments.of(sample.pooled))
    assert any("has no features" in note for note in notes)


@pytest.mark.parametrize(("count", "there", "with_interval"), [(2, False, False), (6, True, False), (12, True, True)])
def test_what_few_images_do_not_allow_is_left_out_not_made_up(count: int, there: bool, with_interval: bool) -> None:
    found = all_scores(features(0, count), features(1, 40), nothing).figures
    assert ("precision" in found) is there
    assert (there and found["precision"].low is not None) is with_interval
    assert (found["fid"].low is not None) is (count > 2)


def test_one_block_alone_has_no_spread() -> None:
    assert jackknife(0.5, [[0.4]]) == Figure(0.5)


def test_classes_balanced_on_purpose_are_distinguished_from_chance() -> None:
    even, chance = torch.arange(200) % 10, torch.randint(10, (200,), generator=seeded(0))
    assert Draws.of(torch.eye(10)[even]).classes is not None
    assert Draws.of(torch.eye(10)[chance]).classes is None
    assert Draws.of(torch.eye(10)[torch.zeros(200, dtype=torch.int64)]).classes is None
    assert Draws.of(torch.ones(200, 1)).classes is None


def test_blocks_of_a_balanced_set_have_as_many_of_each_class() -> None:
    draws = Draws(120, torch.arange(120) % 4)
    assert len(draws.jackknife_blocks()) == 15  # of which 30 images of a class give each 2
    for block in draws.jackknife_blocks():
        assert (block % 4).bincount().tolist() == [2, 2, 2, 2]


def test_a_balanced_set_is_noted() -> None:
    pooled = drawn(seeded(0), 40, 4)
    sure = Features(pooled, pooled, torch.eye(4)[torch.arange(40) % 4])
    notes = all_scores(sure, features(1, 40, 4), nothing).notes
    assert any(note.startswith("equal numbers of images per class: samples;") for note in notes)
