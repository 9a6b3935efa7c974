"""Two formulas of a process that no sampler or loss needs, to compare with."""

from torch import Tensor

from diffusion.process import DiffusionProcess, gather


def q_mean_variance(process: DiffusionProcess, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of q(x_t | x_0); the last two broadcast over x0."""
    alpha_bar = process.schedule.alpha_bar
    rest = 1 - alpha_bar
    return gather(alpha_bar.sqrt(), t, x0) * x0, gather(rest, t, x0), gather(rest.log(), t, x0)


def eps_from_x0(process: DiffusionProcess, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """The eps whose x_0 at x_t is x0 (Ho et al. 2020, Eq. 4)."""
    return (gather(process.schedule.x0_from_x, t, x_t) * x_t - x0) / gather(process.schedule.sigma, t, x_t)
