"""The Inception score (Salimans et al. 2016): confident answers of a classifier, over many classes."""

import torch
from torch import Tensor

from evaluation.features import checked_points

OFFICIAL_SPLIT = 5000


def inception_score(probabilities: Tensor, split_size: int = OFFICIAL_SPLIT) -> float:
    """exp of the mean KL divergence of p(y | x) from p(y), averaged over splits taken in order.

    Shapes: probabilities [N, classes]. A shorter last split has the same weight as a full one. A probability of
    exactly 0, to which a softmax in float32 can underflow, adds 0, its limit; the official evaluator gives NaN.
    Raises: ValueError for no sample, and for NaN or infinity.
    """
    scores = []
    for part in checked_points(probabilities, 1, "the Inception score").parts(split_size):
        divergence = (part.xlogy(part) - part.xlogy(part.mean(dim=0))).sum(dim=1)
        scores.append(divergence.mean().exp())
    return float(torch.stack(scores).mean())


def class_probabilities(features: Tensor, weight: Tensor) -> Tensor:
    """Softmax of pooled features [N, D] times the last layer's weight [D, classes].

    The official evaluator omits the layer's bias, and so do published scores.
    """
    return (features @ weight).softmax(dim=1)
