"""Microbatches and learning-rate rules of the official training loops."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.losses import LossTerms


def accumulate(micro_losses: Callable[[slice], LossTerms], weights: Tensor, microbatch: int) -> dict[str, Tensor]:
    """Backpropagate a batch in microbatches; returns the loss terms of the whole batch, [N] each, detached.

    Each microbatch's weighted mean is backpropagated as it is, so gradients add and grow with their number: that is how
    the published models were trained, and their learning rates belong to it.
    """
    parts = []
    for start in range(0, len(weights), microbatch):
        part = slice(start, min(start + microbatch, len(weights)))
        terms = micro_losses(part)
        (terms.loss * weights[part]).mean().backward()
        parts.append({name: value.detach() for name, value in terms.named().items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def annealed_diffusion_rate(base: float, step: int, resumed_at: int, total: int) -> float:
    """Learning rate in force at a step of the official diffusion loop, which anneals after the step.

    So the first two steps run at the full rate. `step` counts from the resumption; total 0 means no annealing.
    """
    if total == 0 or step == 0:
        return base
    return base * (1 - (step - 1 + resumed_at) / total)


def annealed_classifier_rate(base: float, step: int, resumed_at: int, total: int) -> float:
    """Learning rate in force at a step of the official classifier loop, which anneals before the step."""
    return base * (1 - (step + resumed_at) / total) if total else base


def warmed_rate(base: float, step: int, done: float, *, warmup_steps: int, decay_share: float) -> float:
    """Our own rule for short runs: a linear warm-up, then constant, then linear to zero over the last share.

    done is the share of the run that is over, 0 to 1: a run may be measured in steps or in minutes.
    """
    warmed = base * min((step + 1) / warmup_steps, 1.0)
    return warmed * min((1 - done) / decay_share, 1.0)
