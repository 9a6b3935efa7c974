"""Points over training seeds: the mean of every metric, and what differences of means are larger than chance."""

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
    """A trained network and its images, [N, 3, 16, 16] of uint8; path: where figures of them are kept."""

    def pixels(self, lab: Lab) -> Tensor: ...

    def path(self, lab: Lab) -> Path: ...


def seeds_of(lab: Lab, make: Callable[[int], Sampled], **fields: Any) -> dict[str, Any]:
    """A point without intervals yet: the fields, and every metric by training seed."""
    found = [_figures(lab, make(seed)) for seed in SEEDS]
    return fields | {"by_seed": {metric: [each[metric] for each in found] for metric in METRICS}}


def with_intervals(points: Points, *, paired: bool) -> Points:
    """Every metric's mean over seeds with its 95 % interval.

    Two seeds are too few for an estimate of their spread, so it is pooled over all points, by Student's t. paired: all
    points saw the same images in the same order under a seed, so it shifts them alike; the shift is removed, so that
    intervals are of differences between points.
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
    """The verdict on images of which the judge's extractor took these features."""
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
