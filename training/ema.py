"""Averages of the weights over a run: exponential ones, and power-function ones, whose width is chosen afterwards.

Source of the latter: Karras et al. 2024 (EDM2), section 3. An average of a relative width weighs step s by s^gamma;
averages of any other width are linear combinations of stored ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

Weights = Mapping[str, Tensor]


class Averages:
    """Averages of a network's parameters by name: "0.9999" for a rate, "power-0.05" for a relative width.

    An exponential average starts with a small rate, because with a fixed one the initial weights would dominate a short
    run.
    """

    def __init__(self, parameters: Weights, rates: Sequence[float], power: Sequence[float]) -> None:
        self._rates = {str(rate): rate for rate in rates}
        self._gammas = {power_name(width): gamma_of(width) for width in power}
        self.values = {
            name: {key: each.detach().clone() for key, each in parameters.items()}
            for name in (*self._rates, *self._gammas)
        }

    @property
    def first(self) -> str:
        """The average for previews, measurements and packing by default."""
        return next(iter(self.values))

    def update(self, parameters: Weights, step: int) -> None:
        """Update all averages with the parameters after a step; the first step is 1."""
        for name, average in self.values.items():
            move(average, parameters, self.decay(name, step))

    def decay(self, name: str, step: int) -> float:
        """The factor on the old average at a step."""
        if name in self._rates:
            return min(self._rates[name], step / (9 + step))
        return float((1 - 1 / step) ** (self._gammas[name] + 1))

    def load(self, values: Mapping[str, Weights]) -> None:
        for name, average in values.items():
            for key, each in average.items():
                self.values[name][key].copy_(each)


@torch.no_grad()
def move(average: Weights, parameters: Weights, decay: float) -> None:
    """average = decay * average + (1 - decay) * parameters, in place."""
    current = [parameters[key].detach() for key in average]
    get_ema_multi_avg_fn(decay)(list(average.values()), current, 0)


def power_name(width: float) -> str:
    return f"power-{width:g}"


def gamma_of(width: float) -> float:
    """Exponent of the power function of a relative width in (0, 0.28).

    Source: EDM2, Eq. 3: width = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), solved for its largest root.
    """
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def combine(stored: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> list[float]:
    """Coefficients of stored averages whose sum is closest to a wanted one; averages are (step, relative width).

    Least squares over the weight profiles on [0, step]; source: EDM2, section 3.2.
    Raises: ValueError if nothing is stored or the wanted step is after all stored ones.
    """
    if not stored or wanted[0] > max(step for step, _ in stored):
        raise ValueError(f"no stored average reaches step {wanted[0]:g}")
    profiles = [(step, gamma_of(width)) for step, width in stored]
    target = (wanted[0], gamma_of(wanted[1]))
    products = np.array([[_product(one, other) for other in profiles] for one in profiles])
    with_target = np.array([_product(one, target) for one in profiles])
    return [float(each) for each in np.linalg.lstsq(products, with_target, rcond=None)[0]]


def _product(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The integral of the product of two profiles p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]."""
    (a, gamma_a), (b, gamma_b) = sorted((one, other))
    # over [0, a], the shorter one; this form avoids overflow of powers
    return float((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (a / b) ** gamma_b / b)
