"""Training losses and bits per dimension (Nichol & Dhariwal 2021, section 3.1; Ho et al. 2020, section 3).

Source: guided-diffusion (MIT), losses.py and gaussian_diffusion.py.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from diffusion.process import DiffusionProcess, MeanType

NATS_PER_BIT = math.log(2.0)
BIN_HALF_WIDTH = 1 / 255  # images are 8-bit, scaled to [-1, 1]
FLOOR = 1e-12  # smallest probability whose log is taken


class LossType(Enum):
    """The official losses. MSE: the mean squared error, plus the variational bound if the variance is learned;
    RESCALED_MSE multiplies that bound by T/1000. KL: the bound alone; RESCALED_KL multiplies it by T."""

    MSE = "mse"
    RESCALED_MSE = "rescaled_mse"
    KL = "kl"
    RESCALED_KL = "rescaled_kl"

    @property
    def variational(self) -> bool:
        return self in (LossType.KL, LossType.RESCALED_KL)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians in nats, elementwise."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1.0
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal CDF, with which the published bits per dimension were computed."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability in nats of 8-bit values scaled to [-1, 1]; the bins beyond +-0.999 are open.

    log_scale is half the log variance. Source: Ho et al. 2020, Eq. 13.
    """
    centered, inverse_std = x - mean, torch.exp(-log_scale)
    cdf_above = normal_cdf(inverse_std * (centered + BIN_HALF_WIDTH))
    cdf_below = normal_cdf(inverse_std * (centered - BIN_HALF_WIDTH))
    log_above, log_rest = cdf_above.clamp(min=FLOOR).log(), (1.0 - cdf_below).clamp(min=FLOOR).log()
    log_bin = (cdf_above - cdf_below).clamp(min=FLOOR).log()
    return torch.where(x < -0.999, log_above, torch.where(x > 0.999, log_rest, log_bin))


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the first axis."""
    return x.mean(dim=list(range(1, x.dim())))


def variational_bound(
    process: DiffusionProcess, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, *, clip_denoised: bool
) -> tuple[Tensor, Tensor]:
    """One term of the bound in bits per dimension [N] (the decoder's NLL at t = 0), and pred_x0."""
    true_mean, _, true_log_variance = process.q_posterior(x0, x_t, t)
    predicted = process.predict(output, x_t, t, clip_denoised=clip_denoised)
    kl = mean_flat(normal_kl(true_mean, true_log_variance, predicted.mean, predicted.log_variance))
    nll = -mean_flat(discretized_gaussian_log_likelihood(x0, predicted.mean, 0.5 * predicted.log_variance))
    return torch.where(t == 0, nll, kl) / NATS_PER_BIT, predicted.pred_x0


@dataclass(frozen=True)
class LossTerms:
    """Per image, [N]: the loss to minimise and its parts; mse and vb are None if the loss has no such part."""

    loss: Tensor
    mse: Tensor | None = None
    vb: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        parts = {"loss": self.loss, "mse": self.mse, "vb": self.vb}
        return {name: part for name, part in parts.items() if part is not None}


def training_losses(
    process: DiffusionProcess, loss_type: LossType, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> LossTerms:
    """The official losses for a network's output at x_t = q_sample(x0, t, noise).

    If the variance is learned, the variational part of an MSE loss trains only the variance, because the mean
    prediction is detached in it.
    """
    num_timesteps = process.schedule.num_timesteps
    if loss_type.variational:
        bound, _ = variational_bound(process, output, x0, x_t, t, clip_denoised=False)
        return LossTerms(bound * num_timesteps if loss_type is LossType.RESCALED_KL else bound)
    predicted, v = process.split(output)
    mse = mean_flat((_target(process, x0, x_t, t, noise) - predicted) ** 2)
    if v is None:
        return LossTerms(mse, mse=mse)
    frozen_mean = torch.cat([predicted.detach(), v], dim=1)
    vb, _ = variational_bound(process, frozen_mean, x0, x_t, t, clip_denoised=False)
    if loss_type is LossType.RESCALED_MSE:
        vb = vb * (num_timesteps / 1000.0)
    return LossTerms(mse + vb, mse=mse, vb=vb)


def _target(process: DiffusionProcess, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    match process.mean_type:
        case MeanType.EPSILON:
            return noise
        case MeanType.START_X:
            return x0
        case MeanType.PREVIOUS_X:
            return process.q_posterior(x0, x_t, t)[0]
