"""Time grids: which of the training timesteps a run keeps.

The networks know whole timesteps and their alpha_bar, so every grid is snapped to the nearest of them: the coefficients
stay exact, and the grid is off by half a timestep at most, more only where it asks for two in the same place.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion.schedule import Schedule, even_timesteps, sampling_timesteps

TimeGrid = Literal["official", "even", "uniform", "logsnr", "karras"]
TIME_GRIDS: tuple[TimeGrid, ...] = get_args(TimeGrid)

PUBLISHED = ("ddpm", "ddim")  # samplers with a spacing of their own in the official code
SECOND_ORDER = ("dpmpp_2m", "heun")
FARTHEST = 100  # a grid begins at least one such part of the schedule below its end
RHO = 7.0  # Karras et al. 2022, Eq. 5


def default_grid(sampler: str, num_steps: int, num_timesteps: int) -> TimeGrid:
    """The grid of a sampler where none is named.

    A solver of second order is one only where its steps are even in a measure of noise: at the clean end a step of one
    length in t is many times longer in log-SNR than the one before. "ddim" has the published grid, unless that begins
    at the last timestep (38, 112 and 334 steps of 1000), where no network can tell an image.
    """
    if sampler in SECOND_ORDER:
        return "karras"
    begins = (num_steps - 1) * math.ceil(num_timesteps / num_steps)  # of ddimN
    return "even" if sampler == "ddim" and begins == num_timesteps - 1 else "official"


def grid_timesteps(schedule: Schedule, time_grid: str | None, sampler: str, num_steps: int) -> list[int]:
    """The timesteps that a run of a sampler keeps: num_steps distinct ones of the schedule, ascending.

    None is the sampler's default_grid. "official" is the published spacing for "ddpm" and "ddim"; for the others it is
    DDIM's, made evenly also where N does not divide. The other grids begin one N-th below the last timestep, at least a
    hundredth: at the end of the cosine schedule, sigma 20,000, no network can tell an image, and a sampler that draws
    no noise keeps what it guesses there. "even" has steps of one length in t down to timestep 0; "uniform" as well, the
    last one to the clean image; "logsnr" and "karras" are even in log sigma and in sigma^(1/7), down to timestep 0. One
    step is the last timestep alone.
    Raises: ValueError for an unknown grid, and where the schedule has fewer timesteps than are asked for.
    """
    count = schedule.num_timesteps
    if not 1 <= num_steps <= count:
        raise ValueError(f"a process of {count} timesteps cannot keep {num_steps}")
    time_grid = time_grid or default_grid(sampler, num_steps, count)
    if time_grid not in TIME_GRIDS:
        raise ValueError(f"unknown time grid {time_grid!r}; there are {', '.join(TIME_GRIDS)}")
    if time_grid == "official" and sampler in PUBLISHED:
        return sampling_timesteps(count, sampler, num_steps)
    if time_grid == "official" or num_steps == 1:
        return even_timesteps(count, num_steps)
    start = max(count - math.ceil(count / min(num_steps, FARTHEST)), num_steps - 1)
    match time_grid:
        case "even":
            places = torch.linspace(0, start, num_steps, dtype=torch.float64)
        case "uniform":
            places = torch.linspace(-1, start, num_steps + 1, dtype=torch.float64)[1:]
        case "logsnr":
            places = _even_in(schedule, lambda sigma: sigma.log(), start, num_steps)
        case "karras":
            places = _even_in(schedule, lambda sigma: sigma ** (1 / RHO), start, num_steps)
    return _snap(places, start)


def most_encoding_steps(num_timesteps: int) -> int:
    """How many steps an encoding may have: its latent lies a hundredth below the end, so more would not fit."""
    return num_timesteps - math.ceil(num_timesteps / FARTHEST)


def _even_in(schedule: Schedule, measure: Callable[[Tensor], Tensor], start: int, num_steps: int) -> Tensor:
    known = measure(schedule.sigma)
    targets = torch.linspace(known[0].item(), known[start].item(), num_steps, dtype=known.dtype)
    after = torch.searchsorted(known, targets).clamp(1, len(known) - 1)
    nearer_before = targets - known[after - 1] < known[after] - targets
    return torch.where(nearer_before, after - 1, after)


def _snap(places: Tensor, last: int) -> list[int]:
    """Return the nearest distinct timesteps of ascending places, up to the last one.

    Where places crowd, the later ones give way upwards, and downwards where they would pass the last one.
    """
    kept: list[int] = []
    for i, place in enumerate(places.round().long().tolist()):
        free = max(place, kept[-1] + 1 if kept else 0)
        kept.append(min(free, last + 1 - len(places) + i))  # leaves room for those to come
    return kept
