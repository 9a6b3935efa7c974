"""Every metric of a set of samples against a reference, each with its interval."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.extractors import Features
from evaluation.features import checked_points
from evaluation.fid_extrapolation import LEAST_IMAGES, extrapolated, growth
from evaluation.frechet import Moments, factor_of, frechet_distance, scatter
from evaluation.inception_score import inception_score
from evaluation.intervals import wilson_interval
from evaluation.kernel_distance import KernelSums
from evaluation.neighbourhood import LEAST, Nearest, neighbourhood
from evaluation.resampling import (
    Draws,
    Figure,
    jackknife,
)

IMAGES_A_DIMENSION = 10  # with fewer images per dimension, FID of equal sets is mostly bias


@dataclass(frozen=True)
class Statistics:
    """Moments of pooled and of spatial features, for FID and sFID.

    features: those of the pictures beside the moments, as in official reference files; the other metrics use them.
    """

    pooled: Moments
    spatial: Moments | None
    features: Features | None = None


Reference = Features | Statistics


@dataclass(frozen=True)
class Scores:
    """The metrics that a reference allows, notes on them, and the nearest reference images."""

    figures: dict[str, Figure]
    notes: list[str]
    nearest: Nearest | None = None
    growth: list[tuple[int, float]] = field(default_factory=list)  # FID by the number of samples


def all_scores(samples: Features, reference: Reference, on_metric: Callable[[str], None]) -> Scores:
    """Every metric that the reference allows.

    Raises: ValueError for features that are not finite, or have other sizes than the reference's.
    """
    known = reference.features if isinstance(reference, Statistics) else reference
    ours = drawn(samples)
    theirs = drawn(known) if known is not None else None
    exact = isinstance(reference, Statistics)  # moments of more images than the file has
    on_metric("FID")
    distances = frechet_distances(samples.pooled, reference.pooled, ours, None if exact else theirs)
    figures = {"fid": distances.figure()}
    grown: list[tuple[int, float]] = []
    if len(samples.pooled) >= LEAST_IMAGES:
        on_metric("extrapolated FID")
        figures["fid_infinity"], grown = fid_infinity(samples.pooled, reference.pooled, ours, distances)
    if reference.spatial is not None and samples.spatial is not None:
        on_metric("sFID")
        figures["sfid"] = frechet(samples.spatial, reference.spatial, ours, None if exact else theirs)
    if samples.probabilities is not None:
        on_metric("Inception Score")
        figures["inception_score"] = inception(samples.probabilities, ours)
    counts = [len(samples.pooled)] + ([] if exact or known is None else [len(known.pooled)])
    notes = [*_notes(figures["fid"], samples.pooled.shape[1], min(counts)), *_balance_notes(ours, theirs)]
    if theirs is None or known is None:
        lacking = "KID, precision, recall, density, coverage and authenticity need"
        return Scores(figures, [*notes, f"the reference has no features, which {lacking}"], None, grown)
    on_metric("KID")
    figures["kid"] = kernel_distance(samples.pooled, known.pooled, ours, theirs)
    if min(len(samples.pooled), len(known.pooled)) < LEAST:
        of_neighbours = "precision, recall, density, coverage and authenticity"
        return Scores(figures, [*notes, f"{of_neighbours} need {LEAST} images on either side"], None, grown)
    on_metric("neighbours")
    found, nearest = neighbours(samples.pooled, known.pooled, ours, theirs)
    return Scores(figures | found, notes, nearest, grown)


def drawn(features: Features) -> Draws:
    """How a set's images were drawn; without classes they count as independent, which makes intervals wider."""
    return Draws(len(features.pooled)) if features.probabilities is None else Draws.of(features.probabilities)


class Distances(NamedTuple):
    """FID of all images, without each block of samples, and without each block of an inexact reference."""

    value: float
    without_samples: list[float]
    without_reference: list[list[float]]

    def figure(self) -> Figure:
        return jackknife(self.value, [self.without_samples, *self.without_reference], low=0)


def frechet(sample: Tensor, reference: Tensor | Moments, ours: Draws, theirs: Draws | None) -> Figure:
    """FID of features [N, D]; a reference of moments only counts as exact."""
    return frechet_distances(sample, reference, ours, theirs).figure()


def frechet_distances(sample: Tensor, reference: Tensor | Moments, ours: Draws, theirs: Draws | None) -> Distances:
    """The FIDs for `frechet`: of all images, and without each block."""
    whole = Moments.of(sample)
    other = reference if isinstance(reference, Moments) else Moments.of(reference)
    without_reference = []
    if theirs is not None and not isinstance(reference, Moments):
        without_reference = [[frechet_distance(whole, part) for part in moments_without_blocks(reference, theirs)]]
    without_samples = [frechet_distance(other, part) for part in moments_without_blocks(sample, ours)]
    return Distances(max(frechet_distance(other, whole), 0.0), without_samples, without_reference)


def fid_infinity(
    sample: Tensor, reference: Tensor | Moments, ours: Draws, distances: Distances
) -> tuple[Figure, list[tuple[int, float]]]:
    """FID of infinitely many samples, and the FIDs of growing parts from which it is extrapolated.

    The reference contributes to its interval as to that of FID.
    """
    other = reference if isinstance(reference, Moments) else Moments.of(reference)
    points = checked_points(sample, 2, "the Frechet distance").centred()
    blocks = ours.jackknife_blocks()
    grown = growth(other, points, blocks)
    value = extrapolated(grown)
    without_samples = [
        extrapolated(growth(other, points, [*blocks[:index], *blocks[index + 1 :]])) for index in range(len(blocks))
    ]
    without_reference = [[value + each - distances.value for each in part] for part in distances.without_reference]
    figure = jackknife(value, [without_samples, *without_reference])
    return Figure(figure.value, figure.low, figure.high), grown


def moments_without_blocks(features: Tensor, draws: Draws) -> Iterator[Moments]:
    """The moments of a set [N, D] without each of its blocks; empty if a block leaves fewer than 2 images."""
    points = checked_points(features, 2, "the Frechet distance").centred()
    assert points.centre is not None
    whole = scatter(points)
    for block in draws.jackknife_blocks() if len(points) > 2 else ():
        part = points.rows(block)
        left = len(points) - len(part)
        shift = -part.sum(dim=0) / left
        factor = None
        if left < points.width:
            kept = torch.ones(len(points), dtype=torch.bool)
            kept[block] = False
            factor = factor_of(points.rows(kept) - shift)
        covariance = (whole - part.T @ part - left * shift.outer(shift)) / (left - 1)
        yield Moments(points.centre + shift, covariance, factor)


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
    """KID, which is unbiased for independent draws and can therefore be below 0."""
    sums = KernelSums.of(sample, reference, ours.jackknife_blocks(), theirs.jackknife_blocks())
    if min(len(sample), len(reference)) < 3:
        return Figure(sums.whole())
    figure = jackknife(sums.whole(), [sums.left_out(0), sums.left_out(1)])
    return Figure(figure.value, figure.low, figure.high)


def neighbours(sample: Tensor, reference: Tensor, ours: Draws, theirs: Draws) -> tuple[dict[str, Figure], Nearest]:
    """The metrics of neighbours; without intervals if there are fewer than twice the necessary images."""
    found, nearest = neighbourhood(sample, reference, ours.jackknife_blocks(), theirs.jackknife_blocks())
    if min(len(sample), len(reference)) < 2 * LEAST:
        return {name: Figure(each.value) for name, each in found.items()}, nearest
    totals = {"precision": len(sample), "authenticity": len(sample)} | dict.fromkeys(
        ("recall", "coverage"), len(reference)
    )
    figures = {}
    for name, (value, *without) in found.items():
        figure = jackknife(value, [each.tolist() for each in without], low=0)
        figures[name] = share(figure, totals[name]) if name in totals else Figure(value, figure.low, figure.high)
    return figures, nearest


def share(figure: Figure, total: int) -> Figure:
    """The interval of a share, at least as wide as Wilson's, because near 0 and 1 all blocks have the same share."""
    low, high = wilson_interval(round(figure.value * total), total)
    if figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, min(figure.low, low), min(max(figure.high, high), 1.0))


def _notes(fid: Figure, dimensions: int, fewest: int) -> Iterator[str]:
    if fewest < IMAGES_A_DIMENSION * dimensions:
        size = "" if fid.bias is None else f": the bias is about {fid.bias:.3g}, of an FID of {fid.value:.3g}"
        wanted = IMAGES_A_DIMENSION * dimensions
        yield f"{fewest} images are few for FID in {dimensions} dimensions ({wanted:,} or more are better){size}"


def _balance_notes(ours: Draws, theirs: Draws | None) -> Iterator[str]:
    balanced = [
        side for side, draws in (("samples", ours), ("reference", theirs)) if draws and draws.classes is not None
    ]
    if balanced:
        yield (
            f"equal numbers of images per class: {' and '.join(balanced)}; the intervals hold for such sets, and KID, "
            "which assumes independent images, is too low"
        )
