"""What can be asked of a stage: a sampler's name and settings, made into the table that its steps go by."""

from diffusion.grids import TimeGrid, grid_timesteps, most_encoding_steps
from diffusion.process import Process
from diffusion.solvers import ENCODE, dpmpp_2m_table, heun_table
from diffusion.tables import SamplerTable, Thresholding, ddim_table, ddpm_table, encoding_table, scale_eps
from engine.trajectory import steps_taken

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "heun")


class UnknownOfferError(Exception):
    """What is asked for is not offered here."""


def build_table(
    process: Process,
    sampler: str,
    num_steps: int,
    eta: float,
    time_grid: TimeGrid | None = None,
    thresholding: Thresholding = "clip",
    strength: float = 1.0,
    eps_scale: float = 1.0,
) -> SamplerTable:
    """Return the coefficients of a run, a row for each evaluation of the network.

    A time_grid of None is the sampler's own. strength takes the last share of the steps. eps_scale multiplies the
    predicted noise.
    Raises: UnknownOfferError for what there is no table for, and says why.
    """
    if sampler not in (*SAMPLERS, ENCODE):
        raise UnknownOfferError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    schedule = process.schedule
    most = most_encoding_steps(schedule.num_timesteps)
    if sampler == ENCODE and not 2 <= num_steps <= most:
        raise UnknownOfferError(f"an encoding takes from 2 to {most} steps")
    try:
        grid = grid_timesteps(schedule, time_grid, "ddim" if sampler == ENCODE else sampler, num_steps)
        respaced = process.respaced(grid[: steps_taken(num_steps, strength)])
    except ValueError as error:
        raise UnknownOfferError(f"{num_steps} steps of {schedule.num_timesteps}: {error}") from error
    return scale_eps(_table(respaced, sampler, eta, thresholding), schedule, eps_scale)


def _table(process: Process, sampler: str, eta: float, thresholding: Thresholding) -> SamplerTable:
    match sampler:
        case "ddim":
            return ddim_table(process, eta, thresholding=thresholding)
        case "dpmpp_2m":
            return dpmpp_2m_table(process, thresholding=thresholding)
        case "heun":
            return heun_table(process, thresholding=thresholding)
        case "ddim_encode":
            return encoding_table(process)
    return ddpm_table(process, thresholding=thresholding)
