"""Samplers and their settings: names, default time grids, and numbers of steps and network evaluations."""

import math
from enum import Enum, auto
from typing import Literal, get_args

Sampler = Literal["ddim", "ddpm", "dpmpp_2m", "heun"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
SECOND_ORDER = ("dpmpp_2m", "heun")
FARTHEST = 100  # a grid begins at least a hundredth of the schedule below its end, where networks see no image
TimeGrid = Literal["official", "even", "uniform", "logsnr", "karras"]
TIME_GRIDS: tuple[TimeGrid, ...] = get_args(TimeGrid)
Thresholding = Literal["clip", "dynamic", "none"]
THRESHOLDINGS: tuple[Thresholding, ...] = get_args(Thresholding)
MAX_GUIDANCE_SCALE = 50.0  # of a request and of a pipeline's default
GuidanceSchedule = Literal["constant", "entropy"]
GUIDANCE_SCHEDULES: tuple[GuidanceSchedule, ...] = get_args(GuidanceSchedule)


class Direction(Enum):
    """The direction of a sampler along the timesteps."""

    DECODE = auto()  # from noise to an image
    ENCODE = auto()  # from an image to the noise from which DDIM makes it


def default_grid(sampler: str, num_steps: int, num_timesteps: int) -> TimeGrid:
    """Return the default time grid of a sampler; for an unknown sampler it is the published one.

    A second-order solver reaches its order only if its steps are even in a measure of noise: at the clean end, a step
    of the same length in t is many times longer in log-SNR than the one before. "ddim" has the published grid, unless
    that begins at the last timestep (38, 112 and 334 steps of 1000), where no network can recognise an image.
    """
    if sampler in SECOND_ORDER:
        return "karras"
    first_timestep = (num_steps - 1) * math.ceil(num_timesteps / num_steps)  # of the spacing ddimN
    return "even" if sampler == "ddim" and first_timestep == num_timesteps - 1 else "official"


def most_encoding_steps(num_timesteps: int) -> int:
    """Return the largest number of steps of an encoding, whose latent is a hundredth of the schedule below its end."""
    return num_timesteps - math.ceil(num_timesteps / FARTHEST)


def steps_taken(num_steps: int, strength: float) -> int:
    """Return the number of a sampler's steps that a strength takes; at least one."""
    return max(1, math.ceil(round(strength * num_steps, 9)))


def num_evaluations(sampler: str, num_steps: int, direction: Direction = Direction.DECODE) -> int:
    """Return a sampler's network evaluations, which are the rows of its table and the steps of the engine.

    Heun's second evaluation is at the end of a step; the last step ends at the clean image, where nothing is evaluated.
    An encoding starts on the first timestep. Unknown samplers take one evaluation per step.
    """
    if direction is Direction.ENCODE:
        return num_steps - 1
    return 2 * num_steps - 1 if sampler == "heun" else num_steps
