"""Distributions of a training batch's timesteps, and the weights for an unbiased loss (Nichol & Dhariwal 2021, 3.3).

Source: guided-diffusion (MIT), resample.py.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

HISTORY = 10  # kept losses per timestep
UNIFORM_SHARE = 0.001  # uniform share of the distribution, so that every timestep is still drawn


class TimestepSampler(Protocol):
    """Gives probabilities of timesteps, and may learn from their losses."""

    def weights(self) -> Tensor:
        """Unnormalised probabilities of the timesteps, [T] float64."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Record the losses [N] of timesteps t [N]."""

    def state(self) -> dict[str, Tensor]:
        """The state that was learnt from losses."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state."""


class UniformSampler:
    """The same probability for every timestep."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def weights(self) -> Tensor:
        return torch.ones(self.num_timesteps, dtype=torch.float64)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing; there is no state."""


class LossSecondMomentSampler:
    """Probabilities in proportion to sqrt(E[loss^2]) of a timestep's last losses; uniform until all histories are
    full."""

    def __init__(self, num_timesteps: int, history: int = HISTORY, uniform_share: float = UNIFORM_SHARE) -> None:
        self.uniform_share = uniform_share
        self.history = torch.zeros(num_timesteps, history, dtype=torch.float64)
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)

    def weights(self) -> Tensor:
        num_timesteps, length = self.history.shape
        if not bool((self.counts == length).all()):
            return torch.ones(num_timesteps, dtype=torch.float64)
        weights = (self.history**2).mean(dim=1).sqrt()
        return weights / weights.sum() * (1 - self.uniform_share) + self.uniform_share / num_timesteps

    def update(self, t: Tensor, losses: Tensor) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            filled = int(self.counts[step])
            if filled == self.history.shape[1]:
                self.history[step] = self.history[step].roll(-1)  # moves the oldest to the end, where it is overwritten
                self.history[step, -1] = loss
            else:
                self.history[step, filled] = loss
                self.counts[step] += 1

    def state(self) -> dict[str, Tensor]:
        return {"history": self.history, "counts": self.counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.history.copy_(state["history"])
        self.counts.copy_(state["counts"])


def timesteps_at(weights: Tensor, position: Tensor) -> Tensor:
    """Timesteps [N] int64 drawn with these weights [T] by inversion, given uniform positions [N] in [0, 1), float64."""
    cumulative = weights.cumsum(0) / weights.sum()
    return torch.searchsorted(cumulative, position, right=True).clamp(max=len(weights) - 1)


def importance(weights: Tensor) -> Tensor:
    """1 / (T p_t) of every timestep, for weights [T] that need not be normalised."""
    return weights.sum() / (len(weights) * weights)
