"""Noise schedules and respacing, in float64 from end to end (Ho et al. 2020; Nichol & Dhariwal 2021, section 3.2).

Source: guided-diffusion (MIT), gaussian_diffusion.py and respace.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from vocabulary.counts import counted


def named_betas(name: str, num_timesteps: int) -> Tensor:
    """Betas of a named schedule: [num_timesteps], float64.

    Raises: ValueError for an unknown name, or if a beta is outside (0, 1], as in linear schedules below 20 steps.
    """
    if name == "linear":
        scale = 1000 / num_timesteps
        betas = torch.linspace(scale * 0.0001, scale * 0.02, num_timesteps, dtype=torch.float64)
    elif name == "cosine":
        edges = [_cosine_alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
        ratios = [after / before for before, after in pairwise(edges)]
        betas = torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)
    else:
        raise ValueError(f"unknown noise schedule {name!r}; known are 'linear' and 'cosine'")
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError(f"the {name} schedule of {counted(num_timesteps, 'step')} has betas outside (0, 1]")
    return betas


def _cosine_alpha_bar(time: float) -> float:
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def space_timesteps(num_timesteps: int, sections: str | Sequence[int]) -> list[int]:
    """The original timesteps that a respaced schedule keeps, ascending.

    sections: "ddimN", or counts like "10,15,20" (also as integers). The range is cut into one part per count, of equal
    lengths, or with the first ones longer by one if the range does not divide evenly. Each part keeps its count of
    evenly spaced timesteps.
    Raises: ValueError if there is no such spacing.
    """
    if isinstance(sections, str):
        if sections.startswith("ddim"):
            return _ddim_timesteps(num_timesteps, int(sections.removeprefix("ddim")))
        sections = [int(count) for count in sections.split(",")]
    kept: list[int] = []
    start = 0
    short, longer = divmod(num_timesteps, len(sections))
    for i, count in enumerate(sections):
        size = short + (i < longer)
        if size < count:
            raise ValueError(f"a section of {counted(size, 'timestep')} cannot keep {count}")
        stride = 1.0 if count <= 1 else (size - 1) / (count - 1)
        position = 0.0  # accumulated, not multiplied: the official rounding depends on it
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return sorted(set(kept))


def _ddim_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return list(range(0, num_timesteps, stride))
    raise ValueError(f"no integer stride over {counted(num_timesteps, 'timestep')} keeps exactly {num_steps} of them")


def sampling_timesteps(num_timesteps: int, sampler: str, num_steps: int) -> list[int]:
    """The published grid of num_steps: for "ddpm" one section, for the others the spacing "ddimN".

    A number of steps without a ddimN spacing gets even_timesteps. A single step is at the last timestep.
    Raises: ValueError if there are fewer timesteps than steps.
    """
    if num_steps == 1:
        return [num_timesteps - 1]
    if sampler == "ddpm":
        return space_timesteps(num_timesteps, [num_steps])
    try:
        return _ddim_timesteps(num_timesteps, num_steps)
    except ValueError:  # most counts above 50
        return even_timesteps(num_timesteps, num_steps)


def even_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Evenly spaced timesteps from 0 to 1/num_steps of the schedule below its end; a single one is the last timestep.

    They are those of "ddimN" if num_steps divides num_timesteps.
    Raises: ValueError if there are fewer timesteps than steps.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"a schedule of {counted(num_timesteps, 'timestep')} has no grid of {num_steps}")
    if num_steps == 1:
        return [num_timesteps - 1]
    last = num_timesteps - math.ceil(num_timesteps / num_steps)
    return [round(i * last / (num_steps - 1)) for i in range(num_steps)]


def _betas_between(alpha_bar: Tensor) -> Tensor:
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])


@dataclass(frozen=True)
class Schedule:
    """A diffusion process in discrete time: betas of its own steps and the original timestep of each.

    Every array is float64 with one entry a step, ascending in noise; values are gathered in float64 and cast last.
    """

    betas: Tensor
    timestep_map: Tensor  # original timestep of each step, int64
    num_original: int

    @classmethod
    def named(cls, name: str, num_timesteps: int) -> "Schedule":
        return cls(named_betas(name, num_timesteps), torch.arange(num_timesteps), num_timesteps)

    def respaced(self, timesteps: Sequence[int]) -> "Schedule":
        """The schedule that visits only these steps; its betas follow from the kept alpha_bar.

        Raises: ValueError if none is kept.
        """
        if not timesteps:
            raise ValueError("a schedule needs at least one timestep")
        kept = torch.tensor(sorted(set(timesteps)))
        return Schedule(_betas_between(self.alpha_bar[kept]), self.timestep_map[kept], self.num_original)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    def network_timesteps(self, *, rescale: bool) -> Tensor:
        """The timestep input of the networks for each step: the original index, or index * 1000 / N as float32."""
        if not rescale:
            return self.timestep_map
        return self.timestep_map.float() * (1000.0 / self.num_original)

    @cached_property
    def alpha_bar(self) -> Tensor:
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """alpha_bar one step closer to the image: 1 at the first."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @cached_property
    def alpha_bar_next(self) -> Tensor:
        """alpha_bar one step further into the noise: 0 at the last."""
        return torch.cat([self.alpha_bar[1:], self.alpha_bar.new_zeros(1)])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 7); 0 at the first step."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """The log of posterior_variance, "clipped": the first entry repeats the second, because log 0 does not exist.

        A schedule of one step has no second entry and uses its beta, which only bounds a variance that is never used.
        """
        rest = self.posterior_variance[1:].log()
        return torch.cat([rest[:1] if len(rest) else self.betas.log(), rest])

    @cached_property
    def posterior_mean_x0(self) -> Tensor:
        """Coefficient of x_0 in the posterior mean."""
        return self.betas * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_x(self) -> Tensor:
        """Coefficient of x_t in the posterior mean."""
        return (1 - self.alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)

    @cached_property
    def x0_from_x(self) -> Tensor:
        """sqrt(1 / alpha_bar): coefficient of x_t in x_0 = x0_from_x * x_t - sigma * eps."""
        return (1 / self.alpha_bar).sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        """sqrt(1 / alpha_bar - 1), the noise level relative to the image."""
        return (1 / self.alpha_bar - 1).sqrt()
