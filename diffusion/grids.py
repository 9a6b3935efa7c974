"""Time grids: the training timesteps that a sampler visits.

The networks were trained on whole timesteps, so each place of a grid is rounded to the nearest of them. The
coefficients stay exact; a place moves by at most half a timestep, or by more if two places round to the same one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.schedule import Schedule, even_timesteps, sampling_timesteps
from vocabulary.counts import counted
from vocabulary.sampling import FARTHEST, TIME_GRIDS, default_grid

PUBLISHED = ("ddpm", "ddim")  # samplers with a spacing of their own in the official code
RHO = 7.0  # Karras et al. 2022, Eq. 5


def grid_timesteps(schedule: Schedule, time_grid: str | None, sampler: str, num_steps: int) -> list[int]:
    """Return the timesteps that a sampler visits: num_steps distinct ones of the schedule, ascending.

    time_grid None is the sampler's default_grid. "official" is the published spacing for "ddpm" and "ddim", and
    even_timesteps for the others. The other grids begin below the last timestep: by 1/num_steps of the schedule, or by
    a hundredth if num_steps is above 100. At the end of the cosine schedule, where sigma is 20,000, no network can
    recognise an image, and a sampler that draws no noise keeps its first guess. "even" has steps of equal length in t
    down to timestep 0; "uniform" too, but its last step goes to the clean image; "logsnr" and "karras" are even in
    log sigma and in sigma^(1/7), down to timestep 0. A grid of one step is the last timestep.
    Raises: ValueError for an unknown grid, or if the schedule has fewer than num_steps timesteps.
    """
    count = schedule.num_timesteps
    if not 1 <= num_steps <= count:
        raise ValueError(f"a schedule of {counted(count, 'timestep')} has no grid of {num_steps}")
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


def _even_in(schedule: Schedule, measure: Callable[[Tensor], Tensor], start: int, num_steps: int) -> Tensor:
    known = measure(schedule.sigma)
    targets = torch.linspace(known[0].item(), known[start].item(), num_steps, dtype=known.dtype)
    after = torch.searchsorted(known, targets).clamp(1, len(known) - 1)
    nearer_before = targets - known[after - 1] < known[after] - targets
    return torch.where(nearer_before, after - 1, after)


def _snap(places: Tensor, last: int) -> list[int]:
    """Return the nearest distinct timesteps of ascending places, up to the last one.

    If several places round to one timestep, later ones move up, or down at the upper end.
    """
    kept: list[int] = []
    for i, place in enumerate(places.round().long().tolist()):
        free = max(place, kept[-1] + 1 if kept else 0)
        kept.append(min(free, last + 1 - len(places) + i))  # leaves room for the later ones
    return kept
