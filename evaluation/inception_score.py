"""The Inception score (Salimans et al. 2016): confident answers of a classifier, over many classes."""

import torch
from torch import Tensor

OFFICIAL_SPLIT = 5000


def inception_score(probabilities: Tensor, split_size: int = OFFICIAL_SPLIT) -> float:
    """exp of the mean KL divergence of p(y | x) from p(y), averaged over splits taken in order.

    Shapes: probabilities [N, classes]. A short last split counts as much as a full one. A probability of exactly 0
    gives NaN, as the official evaluator does.
    """
    scores = []
    for part in probabilities.double().split(split_size):
        divergence = (part * (part.log() - part.mean(dim=0).log())).sum(dim=1)
        scores.append(divergence.mean().exp())
    return float(torch.stack(scores).mean())


def class_probabilities(features: Tensor, weight: Tensor) -> Tensor:
    """Softmax of pooled features [N, D] times the last layer's weight [D, classes].

    The official evaluator leaves the layer's bias out, and published scores are without it.
    """
    return (features @ weight).softmax(dim=1)
