"""Time grids: which of the training timesteps a run keeps.

The networks know whole timesteps and their alpha_bar, so every grid is snapped to the nearest of them: the coefficients
stay exact, and the grid is off by half a timestep at most, more only where it asks for two in the same place.
"""

from collections.abc import Callable
from math import ceil
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion.schedule import Schedule, sampling_timesteps

TimeGrid = Literal["official", "uniform", "logsnr", "karras"]
TIME_GRIDS: tuple[TimeGrid, ...] = get_args(TimeGrid)

PUBLISHED = ("ddpm", "ddim")  # samplers with a spacing of their own in the official code
RHO = 7.0  # Karras et al. 2022, Eq. 5


def grid_timesteps(schedule: Schedule, time_grid: str, sampler: str, num_steps: int) -> list[int]:
    """The timesteps that a run of a sampler keeps: num_steps distinct ones of the schedule, ascending.

    "official" is the published spacing for "ddpm" and "ddim". For the solvers of second order it is DDIM's, made even
    where N does not divide. That and the other grids begin one N-th below the last timestep: at the end of the cosine
    schedule, sigma 20,000, no network can tell an image, and what it guesses there a sampler that draws no noise never
    forgets. "uniform" has steps of one length in t, the last one to the clean image; "logsnr" and "karras" are even in
    log sigma and in sigma^(1/7), down to timestep 0. One step is the last timestep alone.
    Raises: ValueError for an unknown grid, and where the schedule has fewer timesteps than are asked for.
    """
    count = schedule.num_timesteps
    if time_grid not in TIME_GRIDS:
        raise ValueError(f"unknown time grid {time_grid!r}; there are {', '.join(TIME_GRIDS)}")
    if not 1 <= num_steps <= count:
        raise ValueError(f"a process of {count} timesteps cannot keep {num_steps}")
    if time_grid == "official" and sampler in PUBLISHED:
        return sampling_timesteps(count, sampler, num_steps)
    if num_steps == 1:
        return [count - 1]
    start = count - ceil(count / num_steps)
    match time_grid:
        case "official":
            places = torch.linspace(0, start, num_steps, dtype=torch.float64)
        case "uniform":
            places = torch.linspace(-1, start, num_steps + 1, dtype=torch.float64)[1:]
        case "logsnr":
            places = _even_in(schedule, lambda sigma: sigma.log(), start, num_steps)
        case "karras":
            places = _even_in(schedule, lambda sigma: sigma ** (1 / RHO), start, num_steps)
    return _snap(places, count)


def _even_in(schedule: Schedule, measure: Callable[[Tensor], Tensor], start: int, num_steps: int) -> Tensor:
    known = measure(schedule.sigma)
    targets = torch.linspace(known[0].item(), known[start].item(), num_steps, dtype=known.dtype)
    after = torch.searchsorted(known, targets).clamp(1, len(known) - 1)
    nearer_before = targets - known[after - 1] < known[after] - targets
    return torch.where(nearer_before, after - 1, after)


def _snap(places: Tensor, count: int) -> list[int]:
    """The nearest distinct timesteps of ascending places: where they crowd, the later ones give way upwards."""
    kept: list[int] = []
    for i, place in enumerate(places.round().long().tolist()):
        free = max(place, kept[-1] + 1 if kept else 0)
        kept.append(min(free, count - len(places) + i))  # leaves room for those to come
    return kept
