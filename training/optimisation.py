"""Parts of a training step: summing gradients over microbatches and processes, and the learning rate."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.distributed import Group
from training.sections import Optimiser


class FlatGradients:
    """All gradients of some parameters in one tensor, so that processes sum them in one call and in one order.

    After the gradients come the batch's loss and the stop flag, which are summed with them.
    """

    EXTRAS = 2

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        sizes = [each.numel() for each in self.parameters]
        self._flat = torch.zeros(sum(sizes) + self.EXTRAS, device=first.device, dtype=first.dtype)
        start = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            # in the parameter's memory layout, because a fused optimiser iterates over both
            parameter.grad = self._flat[start : start + size].as_strided(parameter.shape, parameter.stride())
            start += size
        self.values, self._extras = self._flat[:start], self._flat[start:]

    def clear(self) -> None:
        self._flat.zero_()

    def add_loss(self, loss: Tensor) -> None:
        self._extras[0] += loss

    def add_up(self, group: Group, *, stop: bool) -> tuple[float, bool]:
        """Sum all processes' gradients; return the whole batch's loss, and whether any process wants to stop."""
        self._extras[1] = float(stop)
        group.add_up(self._flat)
        loss, stops = self._extras.tolist()
        return loss, stops > 0

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.values))

    def clip(self, norm: float, largest: float | None) -> None:
        if largest is not None and norm > largest:
            self.values.mul_(largest / norm)


def learning_rate(settings: Optimiser, step: int) -> float:
    """The rate of a step: a linear warm-up, then constant, then linear to zero over the last share of the run."""
    warmed = min((step + 1) / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
    if not settings.decay_share:
        return settings.learning_rate * warmed
    left = (1 - step / settings.steps) / settings.decay_share
    return settings.learning_rate * warmed * min(left, 1.0)


def parts(count: int, size: int | None) -> list[slice]:
    """Divide a batch of `count` into microbatches of one size; the last one may be smaller."""
    size = size or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
