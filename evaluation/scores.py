"""Every metric of a set of samples against a reference, each with its interval."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.extractors import Features
from evaluation.features import exact_features
from evaluation.frechet import Moments, frechet_distance
from evaluation.inception_score import inception_score
from evaluation.intervals import wilson_interval
from evaluation.kernel_distance import KernelSums
from evaluation.neighbourhood import LEAST, neighbourhood
from evaluation.resampling import (
    Draws,
    Figure,
    jackknife,
)

IMAGES_A_DIMENSION = 10  # with fewer, FID is mostly its own bias where sets are alike


@dataclass(frozen=True)
class Statistics:
    """Moments of pooled and of spatial features without the features themselves: FID and sFID alone."""

    pooled: Moments
    spatial: Moments | None


Reference = Features | Statistics


def all_scores(
    samples: Features, reference: Reference, on_metric: Callable[[str], None]
) -> tuple[dict[str, Figure], list[str]]:
    """The metrics that the reference allows, and what is to be known of them, a sentence each.

    Raises: ValueError for features that are not finite, or of other sizes than the reference's.
    """
    scores: dict[str, Figure] = {}
    ours = Draws.of(samples.probabilities)
    theirs = Draws.of(reference.probabilities) if isinstance(reference, Features) else None
    on_metric("FID")
    pooled = reference.pooled
    scores["fid"] = frechet(samples.pooled, pooled, ours, theirs)
    if reference.spatial is not None:
        on_metric("sFID")
        scores["sfid"] = frechet(samples.spatial, reference.spatial, ours, theirs)
    on_metric("Inception Score")
    scores["inception_score"] = inception(samples.probabilities, ours)
    notes = [*_notes(scores["fid"], samples.pooled, pooled), *_balance_notes(ours, theirs)]
    if theirs is None or isinstance(pooled, Moments):
        return scores, [*notes, "the reference has no features, which KID, precision, recall, density, coverage need"]
    on_metric("KID")
    scores["kid"] = kernel_distance(samples.pooled, pooled, ours, theirs)
    if min(len(samples.pooled), len(pooled)) < LEAST:
        return scores, [*notes, f"precision, recall, density and coverage need {LEAST} images on either side"]
    on_metric("neighbours")
    return scores | neighbours(samples.pooled, pooled, ours, theirs), notes


def frechet(sample: Tensor, reference: Tensor | Moments, ours: Draws, theirs: Draws | None) -> Figure:
    """FID of features [N, D]; a reference of which only the moments are known is taken as exact."""
    whole = Moments.of(sample)
    if theirs is None or isinstance(reference, Moments):
        assert isinstance(reference, Moments)
        distances = (frechet_distance(reference, part) for part in moments_without_blocks(sample, ours))
        return jackknife(_distance(reference, whole), [distances], low=0)
    other = Moments.of(reference)
    without_samples = (frechet_distance(other, part) for part in moments_without_blocks(sample, ours))
    without_reference = (frechet_distance(whole, part) for part in moments_without_blocks(reference, theirs))
    return jackknife(_distance(other, whole), [without_samples, without_reference], low=0)


def _distance(a: Moments, b: Moments) -> float:
    return max(frechet_distance(a, b), 0.0)  # which rounding passes where sets are equal


def moments_without_blocks(features: Tensor, draws: Draws) -> Iterator[Moments]:
    """The moments of a set [N, D] without each of its blocks; none where a block leaves fewer than 2 images."""
    exact = exact_features(features, 2, "the Frechet distance")
    centre = exact.mean(dim=0)
    exact = exact - centre
    scatter = exact.T @ exact
    for block in draws.jackknife_blocks() if len(exact) > 2 else ():
        part = exact[block]
        left = len(exact) - len(part)
        shift = -part.sum(dim=0) / left
        yield Moments(centre + shift, (scatter - part.T @ part - left * shift.outer(shift)) / (left - 1))


def inception(probabilities: Tensor, draws: Draws) -> Figure:
    """The Inception Score by the extractor's own classes."""
    without = (
        inception_score(probabilities[torch.cat([*parts[:index], *parts[index + 1 :]]).sort().values])
        for parts in [draws.jackknife_blocks()]
        for index in range(len(parts))
    )
    figure = jackknife(inception_score(probabilities), [without], low=1, high=probabilities.shape[1])
    return Figure(figure.value, figure.low, figure.high)


def kernel_distance(sample: Tensor, reference: Tensor, ours: Draws, theirs: Draws) -> Figure:
    """KID, which has no bias for independent draws and may therefore be below 0."""
    sums = KernelSums.of(sample, reference, ours.jackknife_blocks(), theirs.jackknife_blocks())
    if min(len(sample), len(reference)) < 3:
        return Figure(sums.whole())
    figure = jackknife(sums.whole(), [sums.left_out(0), sums.left_out(1)])
    return Figure(figure.value, figure.low, figure.high)


def neighbours(sample: Tensor, reference: Tensor, ours: Draws, theirs: Draws) -> dict[str, Figure]:
    """Precision, recall, density and coverage; with fewer than twice the images that they need without intervals."""
    found = neighbourhood(sample, reference, ours.jackknife_blocks(), theirs.jackknife_blocks())
    if min(len(sample), len(reference)) < 2 * LEAST:
        return {name: Figure(each.value) for name, each in found.items()}
    totals = {"precision": len(sample), "recall": len(reference), "coverage": len(reference)}
    figures = {}
    for name, (value, *without) in found.items():
        figure = jackknife(value, [each.tolist() for each in without], low=0)
        figures[name] = share(figure, totals[name]) if name in totals else Figure(value, figure.low, figure.high)
    return figures


def share(figure: Figure, total: int) -> Figure:
    """The interval of a share, no narrower than Wilson's: near 0 and 1 no block has another share than the whole."""
    low, high = wilson_interval(round(figure.value * total), total)
    if figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, min(figure.low, low), min(max(figure.high, high), 1.0))


def _notes(fid: Figure, sample: Tensor, reference: Tensor | Moments) -> Iterator[str]:
    counts = [len(sample)] + ([] if isinstance(reference, Moments) else [len(reference)])
    dimensions, fewest = sample.shape[1], min(counts)
    if fewest < IMAGES_A_DIMENSION * dimensions:
        size = "" if fid.bias is None else f": its bias is about {fid.bias:.3g}, where it is {fid.value:.3g}"
        wanted = IMAGES_A_DIMENSION * dimensions
        yield f"{fewest} images are few for FID in {dimensions} dimensions ({wanted:,} or more are better){size}"


def _balance_notes(ours: Draws, theirs: Draws | None) -> Iterator[str]:
    balanced = [
        side for side, draws in (("samples", ours), ("reference", theirs)) if draws and draws.classes is not None
    ]
    if balanced:
        yield (
            f"as many images of each class: {' and '.join(balanced)}; the intervals are of such sets, and KID, which "
            "takes images as independent, lies too low"
        )
