"""Our metrics agree with those of torch-fidelity and torchmetrics on random features, also far from the origin."""

import random

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import _compute_fid

from evaluation.frechet import Moments, frechet_distance
from evaluation.inception_score import inception_score
from evaluation.precision_recall import precision_recall

CASES = range(20)


def draw_sets(draw: random.Random) -> tuple[Tensor, Tensor]:
    width, shift = draw.randint(2, 24), draw.choice([0.0, 3.0, 100.0])
    a, b = (torch.randn(draw.randint(40, 120), width, dtype=torch.float64) for _ in range(2))
    return a + shift, b * draw.uniform(0.5, 1.5) + shift + draw.uniform(0, 0.5)


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance_is_theirs(case: int, draw: random.Random) -> None:
    a, b = draw_sets(draw)
    moments = Moments.of(a), Moments.of(b)
    got = frechet_distance(*moments)
    statistics = fid_features_to_statistics(a), fid_features_to_statistics(b)
    assert got == pytest.approx(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID], rel=1e-5)
    first, second = moments
    theirs = _compute_fid(first.mean, first.covariance, second.mean, second.covariance)
    assert got == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_precision_and_recall_are_theirs(case: int, draw: random.Random) -> None:
    reference, sample = draw_sets(draw)
    neighbours = draw.randint(1, 8)
    got = precision_recall(reference, sample, (neighbours,))
    want = calculate_precision_recall_full(sample, reference, neighbours)
    assert (float(got.precision), float(got.recall)) == pytest.approx(want)


@pytest.mark.parametrize("case", CASES)
def test_inception_score_is_theirs(case: int, draw: random.Random) -> None:
    splits, classes = draw.randint(1, 5), draw.randint(2, 20)
    logits = torch.randn(splits * draw.randint(5, 30), classes) * draw.choice([1.0, 10.0, 100.0])
    want = isc_features_to_metric(logits, splits, shuffle=False)[KEY_METRIC_ISC_MEAN]
    probabilities = logits.softmax(dim=1)  # float32, which underflows to 0 at the largest of the scales
    assert inception_score(probabilities, len(logits) // splits) == pytest.approx(want, rel=1e-4)
