"""The whole variational bound in bits per dimension, to compare its terms with the official code's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.losses import NATS_PER_BIT, mean_flat, normal_kl, variational_bound
from diffusion.process import DiffusionProcess
from tests.diffusion.conversions import eps_from_x0, q_mean_variance


def prior_bpd(process: DiffusionProcess, x0: Tensor) -> Tensor:
    """KL of q(x_T | x_0) from a standard normal, bits per dimension, [N]."""
    last = torch.full((len(x0),), process.schedule.num_timesteps - 1, device=x0.device)
    mean, _, log_variance = q_mean_variance(process, x0, last)
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    return mean_flat(normal_kl(mean, log_variance, zero, zero)) / NATS_PER_BIT


@dataclass(frozen=True)
class BitsPerDim:
    """The whole bound: total and prior [N]; vb, x0_mse and eps_mse [N, T], columns in descending t."""

    total: Tensor
    prior: Tensor
    vb: Tensor
    x0_mse: Tensor
    eps_mse: Tensor


@torch.no_grad()
def bits_per_dim(
    process: DiffusionProcess,
    model: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    draw_noise: Callable[[int], Tensor],
    *,
    clip_denoised: bool = True,
) -> BitsPerDim:
    """Evaluate every term of the bound. model takes x_t and the timesteps as networks see them; draw_noise(k) is the
    noise of the k-th term."""
    vb, x0_mse, eps_mse = [], [], []
    for k, step in enumerate(reversed(range(process.schedule.num_timesteps))):
        t = torch.full((len(x0),), step, device=x0.device)
        noise = draw_noise(k)
        x_t = process.q_sample(x0, t, noise)
        term, pred_x0 = variational_bound(
            process, model(x_t, process.network_timesteps[t]), x0, x_t, t, clip_denoised=clip_denoised
        )
        vb.append(term)
        x0_mse.append(mean_flat((pred_x0 - x0) ** 2))
        eps_mse.append(mean_flat((eps_from_x0(process, x_t, t, pred_x0) - noise) ** 2))
    prior, terms = prior_bpd(process, x0), torch.stack(vb, dim=1)
    return BitsPerDim(terms.sum(dim=1) + prior, prior, terms, torch.stack(x0_mse, dim=1), torch.stack(eps_mse, dim=1))
