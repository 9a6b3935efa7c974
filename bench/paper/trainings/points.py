"""Points over training seeds: every metric's mean, and the interval beyond which means differ by more than chance."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor

from bench.paper.core import Lab, doubled
from bench.paper.row import Points
from bench.paper.trainings.variants import SEEDS
from evaluation.extractors import Features
from evaluation.judging import Verdict
from files.atomic import atomic_write

METRICS = ("fid", "precision", "recall")


class Sampled(Protocol):
    """A trained network and its images, [N, 3, 16, 16] of uint8; path: the file of their figures."""

    def pixels(self, lab: Lab) -> Tensor: ...

    def path(self, lab: Lab) -> Path: ...


def seeds_of(lab: Lab, make: Callable[[int], Sampled], **fields: Any) -> dict[str, Any]:
    """A point without intervals yet: the fields, and every metric by training seed."""
    found = [_figures(lab, make(seed)) for seed in SEEDS]
    return fields | {"by_seed": {metric: [each[metric] for each in found] for metric in METRICS}}


def with_intervals(points: Points, *, paired: bool) -> Points:
    """Every metric's mean over seeds with its 95 % interval.

    Two seeds are too few to estimate the spread of one point, so the spread is pooled over all points; the intervals
    follow Student's t. paired: under one seed, all points saw the same images in the same order, so the seed shifts
    them alike. This shift is removed, and the intervals are those of differences between points.
    """
    found: dict[str, list[dict[str, float | None]]] = {}
    for metric in METRICS:
        values = torch.tensor([each["by_seed"][metric] for each in points], dtype=torch.float64)  # [points, seeds]
        means, (count, seeds) = values.mean(dim=1), values.shape
        errors = values - means[:, None]
        freedom = count * (seeds - 1)
        if paired:
            errors, freedom = errors - errors.mean(dim=0), (count - 1) * (seeds - 1)
        half = float(stdtrit(freedom, 0.975)) * math.sqrt(float(errors.square().sum()) / freedom / seeds)
        found[metric] = [
            {"value": each, "low": max(each - half, 0.0), "high": each + half, "bias": None} for each in means.tolist()
        ]
    return [
        each | {"metrics": {metric: found[metric][place] for metric in METRICS}} for place, each in enumerate(points)
    ]


def verdict_of(features: Features) -> Verdict:
    """The verdict on images, from the features that the judge's extractor took of them."""
    assert features.probabilities is not None
    return Verdict(features.probabilities, features.pooled)


def _figures(lab: Lab, sampled: Sampled) -> dict[str, float]:
    """The metrics of a network's images, which are computed once and kept."""
    path = sampled.path(lab)
    if not path.exists():
        samples, reference = (
            verdict_of(each) for each in (lab.features(doubled(sampled.pixels(lab))), lab.small_reference)
        )
        found = samples.closeness(reference)
        with atomic_write(path, durable=True) as file:
            file.write(json.dumps(found).encode())
    figures: dict[str, float] = json.loads(path.read_text())
    return figures
