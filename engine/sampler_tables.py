"""Makes the table of a sampler's steps from its name and settings."""

from diffusion.grids import grid_timesteps
from diffusion.process import DiffusionProcess
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, encoding_table, scale_eps
from engine.errors import StepCountError, TimeGridError, UnknownSamplerError
from engine.trajectory import StagePlan
from vocabulary.sampling import SAMPLERS, Direction, most_encoding_steps, steps_taken


def build_table(process: DiffusionProcess, plan: StagePlan) -> SamplerTable:
    """Return a plan's table of coefficients, one row per evaluation of the network.

    Raises: UnknownOfferError for a plan that has no table.
    """
    if plan.sampler not in SAMPLERS:
        raise UnknownSamplerError(plan.sampler, SAMPLERS)
    schedule, encodes = process.schedule, plan.direction is Direction.ENCODE
    if encodes and plan.sampler != "ddim":
        raise UnknownSamplerError(plan.sampler, ("ddim",))
    most = most_encoding_steps(schedule.num_timesteps)
    if encodes and not 2 <= plan.num_steps <= most:
        raise StepCountError(plan.num_steps, most)
    try:
        grid = grid_timesteps(schedule, plan.time_grid, plan.sampler, plan.num_steps)
        respaced = process.respaced(grid[: steps_taken(plan.num_steps, plan.strength)])
    except ValueError as error:
        raise TimeGridError(plan.num_steps, schedule.num_timesteps, str(error)) from error
    return scale_eps(encoding_table(respaced) if encodes else _table(respaced, plan), schedule, plan.eps_scale)


def _table(process: DiffusionProcess, plan: StagePlan) -> SamplerTable:
    match plan.sampler:
        case "ddim":
            return ddim_table(process, plan.eta, thresholding=plan.thresholding)
        case "dpmpp_2m":
            return dpmpp_2m_table(process, thresholding=plan.thresholding)
        case "heun":
            return heun_table(process, thresholding=plan.thresholding)
    return ddpm_table(process, thresholding=plan.thresholding)
