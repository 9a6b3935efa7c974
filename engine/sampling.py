"""What can be asked of a stage: a sampler's name and settings, made into the table that its steps go by."""

from diffusion.grids import TimeGrid, grid_timesteps
from diffusion.process import Process
from diffusion.solvers import ENCODE, dpmpp_2m_table, heun_table
from diffusion.tables import SamplerTable, Thresholding, ddim_table, ddpm_table, encoding_table
from engine.trajectory import steps_taken

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "heun")


class UnknownOfferError(Exception):
    """What is asked for is not offered here."""


def build_table(
    process: Process,
    sampler: str,
    num_steps: int,
    eta: float,
    time_grid: TimeGrid = "official",
    thresholding: Thresholding = "clip",
    strength: float = 1.0,
) -> SamplerTable:
    """The coefficients of a run, a row for each evaluation of the network; strength takes the last share of the steps.

    Raises: UnknownOfferError for what there is no table for, and says why.
    """
    if sampler not in (*SAMPLERS, ENCODE):
        raise UnknownOfferError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    if sampler == ENCODE and num_steps < 2:
        raise UnknownOfferError("an encoding takes at least 2 steps")
    schedule = process.schedule
    try:
        grid = grid_timesteps(schedule, time_grid, "ddim" if sampler == ENCODE else sampler, num_steps)
        respaced = process.respaced(grid[: steps_taken(num_steps, strength)])
    except ValueError as error:
        raise UnknownOfferError(f"{num_steps} steps of {schedule.num_timesteps}: {error}") from error
    match sampler:
        case "ddim":
            return ddim_table(respaced, eta, thresholding=thresholding)
        case "dpmpp_2m":
            return dpmpp_2m_table(respaced, thresholding=thresholding)
        case "heun":
            return heun_table(respaced, thresholding=thresholding)
        case "ddim_encode":
            return encoding_table(respaced)
    return ddpm_table(respaced, thresholding=thresholding)
