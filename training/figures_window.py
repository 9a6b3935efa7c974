"""Figures of the steps since the last line of stats.jsonl, as means over all images and processes."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.config import RunConfig
from training.objectives import Losses

QUARTILES = 4


class Window:
    """Sums of each figure by quartile of the timestep, and numbers of images.

    Every process has the sums over all processes, so that the state that one of them writes is complete.
    """

    def __init__(self, config: RunConfig) -> None:
        self.num_timesteps = config.process.num_timesteps
        self.sums: dict[str, Tensor] = {}
        self.counts = torch.zeros(QUARTILES, dtype=torch.float64)
        self.images = 0
        self._since = time.monotonic()
        self._step: list[tuple[Losses, Tensor]] = []

    def begin_step(self) -> None:
        self._step = []

    def add(self, losses: Losses, t: Tensor) -> None:
        """Add a microbatch of the present step; it counts when the step ends."""
        self._step.append((Losses(losses.total.detach(), losses.figures), t))

    def table(self) -> Tensor:
        """The step's images in this process, [N, 2 + figures]: timestep, unweighted loss and each figure."""
        return torch.cat([torch.stack([t, each.total, *each.figures.values()], dim=1) for each, t in self._step])

    def end_step(self, table: Tensor) -> None:
        """Count the step's images in a table, which has those of all processes."""
        names = list(self._step[0][0].figures)
        timesteps, _, *figures = table.cpu().double().unbind(1)
        quartiles = QUARTILES * timesteps.long() // self.num_timesteps
        self.counts.index_add_(0, quartiles, torch.ones_like(timesteps))
        for name, values in zip(names, figures, strict=True):
            self.sums.setdefault(name, torch.zeros(QUARTILES, dtype=torch.float64)).index_add_(0, quartiles, values)
        self.images += len(table)
        self._step = []

    def line(self, step: int) -> dict[str, float]:
        """The means, over all and by quartile (NAME_q0 to NAME_q3), and images per second; starts the next window."""
        now = time.monotonic()
        rate = self.images / max(now - self._since, 1e-9)
        figures = means({name: self.sums[name] for name in sorted(self.sums)}, self.counts)
        self.sums, self.counts, self.images, self._since = {}, torch.zeros_like(self.counts), 0, now
        return {"step": step, **figures, "images_per_second": rate}

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), state["counts"]


def means(sums: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
    """Means of figures from their sums [QUARTILES], over all and by quartile; no mean without images."""
    figures: dict[str, float] = {}
    for name, each in sums.items():
        figures[name] = float(each.sum() / counts.sum())
        figures |= {f"{name}_q{q}": float(each[q] / counts[q]) for q in range(QUARTILES) if counts[q]}
    return figures
