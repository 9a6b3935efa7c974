"""Figures of the steps since the last line of stats.jsonl, as means over all images and processes."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.config import RunConfig
from training.distributed import Group
from training.objectives import Losses

QUARTILES = 4


class Window:
    """Sums of each figure by quartile of the timestep, and of how many images they are."""

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
        """Take a microbatch of the step that is computed; it counts when the step ends."""
        self._step.append((Losses(losses.total.detach(), losses.figures), t))

    def draws(self) -> tuple[Tensor, Tensor]:
        """Timesteps and unweighted losses of the step's images in this process: [N] each."""
        return torch.cat([t for _, t in self._step]), torch.cat([each.total for each, _ in self._step])

    def end_step(self, images: int) -> None:
        self.images += images
        for losses, t in self._step:
            quartiles = (QUARTILES * t // self.num_timesteps).cpu()
            self.counts.index_add_(0, quartiles, torch.ones(len(t), dtype=torch.float64))
            for name, values in losses.figures.items():
                sums = self.sums.setdefault(name, torch.zeros(QUARTILES, dtype=torch.float64))
                sums.index_add_(0, quartiles, values.double().cpu())
        self._step = []

    def line(self, group: Group, step: int, device: torch.device) -> dict[str, float]:
        """The means, over all and by quartile (NAME_q0 to NAME_q3), and images a second; the next window begins."""
        names = sorted(self.sums)
        table = torch.stack([self.counts, *(self.sums[name] for name in names)]).to(device)
        counts, *sums = group.add_up(table).cpu()
        now = time.monotonic()
        rate = self.images / max(now - self._since, 1e-9)
        self.sums, self.counts, self.images, self._since = {}, torch.zeros_like(self.counts), 0, now
        return {"step": step, **means(dict(zip(names, sums, strict=True)), counts), "images_per_second": rate}

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), state["counts"]


def means(sums: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
    """Means of figures from their sums [QUARTILES], over all and by quartile; what has no images has no mean."""
    figures: dict[str, float] = {}
    for name, each in sums.items():
        figures[name] = float(each.sum() / counts.sum())
        figures |= {f"{name}_q{q}": float(each[q] / counts[q]) for q in range(QUARTILES) if counts[q]}
    return figures
