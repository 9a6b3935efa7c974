"""Exponential moving average of parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """ema = rate * ema + (1 - rate) * parameter, after every optimizer step taken; starts as the parameters."""

    def __init__(self, state: Mapping[str, Tensor], rate: float) -> None:
        self.rate = rate
        self.values = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.mul_(self.rate).add_(state[name].detach(), alpha=1 - self.rate)
