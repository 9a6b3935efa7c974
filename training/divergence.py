"""Detects divergence of a run before its saved state is replaced by a worse one."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

HISTORY = 100  # steps that a step is compared with
RECENT = 20  # steps whose median is compared
# A run has diverged if the recent median exceeds this multiple of the lowest median of HISTORY losses, and also the
# median of the first RECENT losses.
LOSS_FACTOR = 5.0
BLOWN_UP = 1000.0  # factor on the largest of up to HISTORY losses
NORM_FACTOR = 100.0  # factor on the median norm of HISTORY gradients
NORM_STEPS = 3  # steps in succession with such a norm; a single one may be an unusual batch


class DivergedError(ArithmeticError):
    """The run has diverged; the message has the step and the evidence."""


class DivergenceWatch:
    """Compares the loss and the gradient's norm of each step with those of the steps before."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.norms: deque[float] = deque(maxlen=HISTORY)
        self.first_loss, self.lowest_loss, self.large_norms = math.inf, math.inf, 0

    def check(self, step: int, loss: float, norm: float) -> None:
        """Check a step. Raises: DivergedError if its loss or gradient is not finite or has exploded."""
        for name, value in (("loss", loss), ("gradient's norm", norm)):
            if not math.isfinite(value):
                raise DivergedError(f"the {name} of step {step} is {value}")
        if self.losses and loss > BLOWN_UP * max(self.losses):
            raise DivergedError(f"the loss of step {step} is {loss:.4g}, where it was {max(self.losses):.4g} at most")
        if self.large_norms + self._is_large(norm) >= NORM_STEPS:
            usual = median(self.norms)
            raise DivergedError(f"the gradient's norm of step {step} is {norm:.4g}, where {usual:.4g} is usual")
        if len(self.losses) < HISTORY:
            return
        recent = median([*list(self.losses)[-RECENT + 1 :], loss])
        if recent > max(self.first_loss, LOSS_FACTOR * self.lowest_loss):
            raise DivergedError(
                f"the median loss of the {RECENT} steps up to {step} is {recent:.4g}: higher than at the run's start "
                f"({self.first_loss:.4g}), after a lowest of {self.lowest_loss:.4g}"
            )

    def note(self, loss: float, norm: float) -> None:
        """Record a step that passed the check."""
        self.large_norms = self.large_norms + 1 if self._is_large(norm) else 0
        self.losses.append(loss)
        self.norms.append(norm)
        if len(self.losses) == RECENT:
            self.first_loss = median(self.losses)
        if len(self.losses) == HISTORY:
            self.lowest_loss = min(self.lowest_loss, median(self.losses))

    def _is_large(self, norm: float) -> bool:
        return len(self.norms) == HISTORY and norm > NORM_FACTOR * median(self.norms)

    def state(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "first_loss": self.first_loss,
            "lowest_loss": self.lowest_loss,
            "large_norms": self.large_norms,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.losses.clear()
        self.norms.clear()
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.first_loss, self.lowest_loss = state["first_loss"], state["lowest_loss"]
        self.large_norms = state["large_norms"]
