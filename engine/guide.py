"""Guides of a stage: any differentiable log p(y | x_t)."""

from dataclasses import dataclass

from torch import nn

from diffusion.guidance import LogProbabilityFn, classifier_log_probabilities
from models.networks.classifier import NoisyClassifier


@dataclass(frozen=True)
class Guide:
    """log p(y | x_t) of num_conditions conditions. module: the module whose weights it uses; None without weights."""

    log_probabilities: LogProbabilityFn
    num_conditions: int
    module: nn.Module | None = None

    @classmethod
    def of_classifier(cls, classifier: NoisyClassifier) -> "Guide":
        """The paper's guide: a noisy classifier; the conditions are its classes."""
        return cls(classifier_log_probabilities(classifier), classifier.config.out_channels, classifier)
