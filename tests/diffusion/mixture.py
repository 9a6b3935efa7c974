"""A Gaussian mixture whose score is known exactly at every noise level, and the production tables run on it.

Everything is float64, with alpha_bar of a process in continuous time and nothing clamped: what is left is the
sampler's own error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion.process import DiffusionProcess, VarianceType
from diffusion.schedule import Schedule
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, take_step

LAMBDA_NOISE, LAMBDA_IMAGE = -5.0, 4.0  # half log-SNR where runs begin, and from where one step goes to the image


@dataclass(frozen=True)
class Mixture:
    """weights [K], means [K, D] and covariances [K, D, D] of the clean images."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @cached_property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @cached_property
    def covariance(self) -> Tensor:
        apart = self.means - self.mean
        spread = self.covariances + apart[:, :, None] * apart[:, None, :]
        return (self.weights[:, None, None] * spread).sum(dim=0)

    def restricted(self, components: list[int]) -> "Mixture":
        """p(x | y) where y is these components."""
        weights = self.weights[components]
        return Mixture(weights / weights.sum(), self.means[components], self.covariances[components])

    def score(self, x: Tensor, alpha_bar: float) -> Tensor:
        """grad log p(x_t) of x [N, D] at a noise level."""
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        noised = alpha_bar * self.covariances + (1 - alpha_bar) * eye
        inverse = torch.linalg.inv(noised)
        apart = x[:, None, :] - alpha_bar**0.5 * self.means
        pulled = torch.einsum("kij,nkj->nki", inverse, apart)
        logs = self.weights.log() - 0.5 * torch.logdet(noised) - 0.5 * (apart * pulled).sum(dim=2)
        score: Tensor = -(logs.softmax(dim=1)[:, :, None] * pulled).sum(dim=1)
        return score

    def draw(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covariances)
        return self.means[component] + torch.einsum("nij,nj->ni", roots[component], noise)


Score = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Guided:
    """A mixture steered towards y, some of its components: score + scale * grad log p(y | x_t)."""

    mixture: Mixture
    components: list[int]
    scale: float

    def guidance(self, x: Tensor, alpha_bar: float) -> Tensor:
        towards = self.mixture.restricted(self.components).score(x, alpha_bar)
        return self.scale * (towards - self.mixture.score(x, alpha_bar))

    def score(self, x: Tensor, alpha_bar: float) -> Tensor:
        return self.mixture.score(x, alpha_bar) + self.guidance(x, alpha_bar)


def alpha_bar_of(half_log_snr: Tensor) -> Tensor:
    return torch.sigmoid(2 * half_log_snr)


def levels_in_log_snr(num_steps: int) -> Tensor:
    """alpha_bar [num_steps], from image to noise, even in lambda."""
    return alpha_bar_of(torch.linspace(LAMBDA_IMAGE, LAMBDA_NOISE, num_steps, dtype=torch.float64))


def schedule_of(alpha_bar: Tensor) -> Schedule:
    """A schedule with given levels of a continuous-time process: alpha_bar [T], float64, from image to noise."""
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return Schedule(betas, torch.arange(len(alpha_bar)), len(alpha_bar))


def build(sampler: str, alpha_bar: Tensor) -> SamplerTable:
    process = DiffusionProcess(schedule_of(alpha_bar), variance_type=VarianceType.FIXED_SMALL)
    match sampler:
        case "ddpm":
            return ddpm_table(process, thresholding="none")
        case "ddim":
            return ddim_table(process, 0.0, thresholding="none")
        case "dpmpp_2m":
            return dpmpp_2m_table(process, thresholding="none")
        case _:
            return heun_table(process, thresholding="none")


def sample(sampler: str, alpha_bar: Tensor, target: Mixture | Guided, x: Tensor) -> Tensor:
    """Run a production table from x [N, D], noise, to the clean image, as an image of D channels and one pixel."""
    table = build(sampler, alpha_bar)
    generator = torch.Generator().manual_seed(0)
    mixture = target.mixture if isinstance(target, Guided) else target
    memory = torch.zeros_like(x)[:, :, None, None]
    for row in range(len(table)):
        level = alpha_bar[int(table.timesteps[row])].item()
        eps = -((1 - level) ** 0.5) * mixture.score(x, level)
        guidance = target.guidance(x, level)[:, :, None, None] if isinstance(target, Guided) else None
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        rows = table.rows[row].expand(len(x), -1)
        shaped = (x[:, :, None, None], eps[:, :, None, None], guidance, noise[:, :, None, None], memory)
        moved, _, memory = take_step(rows, *shaped)
        x = moved[:, :, 0, 0]
    return x


def integrate(score: Score, x: Tensor, span: tuple[float, float] = (LAMBDA_NOISE, LAMBDA_IMAGE)) -> Tensor:
    """The same run by another way: the probability-flow ODE in lambda by an adaptive method of order 8, to 1e-11, and
    the step from its end to the clean image."""
    last = alpha_bar_of(torch.tensor(span[1], dtype=torch.float64)).item()

    def slope(half_log_snr: float, flat: object) -> Tensor:
        # dx/dlambda = (1 - alpha_bar) (x + score): f x - g^2/2 score of the VP process, by the chain rule
        level = alpha_bar_of(torch.tensor(half_log_snr, dtype=torch.float64)).item()
        x_t = torch.as_tensor(flat, dtype=torch.float64).reshape(x.shape)
        return ((1 - level) * (x_t + score(x_t, level))).flatten()

    solved = solve_ivp(slope, span, x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    x_t = torch.from_numpy(solved.y[:, -1]).reshape(x.shape)
    clean: Tensor = (x_t + (1 - last) * score(x_t, last)) / last**0.5
    return clean
