"""Samplers as coefficient tables: every step of DDPM and DDIM, guided or not, is one formula with a row of numbers.

    pred_x0 = clamp(X x - E out)
    x_prev  = A x + B pred_x0 + D out + (G + H var(v)) g + (S + K sqrt(var(v))) noise

with log var(v) between the row's two bounds. Rows are built once in float64 per (schedule, sampler, eta); a step
gathers one row an image, so a batch mixes samplers, lengths, schedules and guidance scales without a branch.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffusion.process import MeanType, Process


@dataclass(frozen=True)
class Coefficients:
    """The columns, [S] each, one entry a step in order of execution (from noise to image), float64."""

    x_to_x0: Tensor  # X
    out_to_x0: Tensor  # E, subtracted
    clamp: Tensor  # bound on |pred_x0|; infinite where it is not clipped
    x_to_prev: Tensor  # A
    x0_to_prev: Tensor  # B
    out_to_prev: Tensor  # D, used where the network predicts x_prev itself
    guidance: Tensor  # G
    guidance_variance: Tensor  # H
    noise: Tensor  # S
    noise_std: Tensor  # K
    low_log_variance: Tensor
    high_log_variance: Tensor
    guidance_x0: Tensor  # what guidance adds to the reported pred_x0: DDIM's is guided, DDPM's is not


COLUMNS = [field.name for field in fields(Coefficients)]


@dataclass(frozen=True)
class SamplerTable:
    """rows [S, len(COLUMNS)] float64 and timesteps [S] as the networks see them; row 0 is the first step taken."""

    rows: Tensor
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def ddpm_table(process: Process, *, clip_denoised: bool = True, rescale_timesteps: bool = False) -> SamplerTable:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2); guided by ADM's Algorithm 1: the mean moves by variance * g."""
    schedule = process.schedule
    columns = _prediction_columns(process, clip_denoised)
    if process.mean_type is MeanType.PREVIOUS_X:
        columns["out_to_prev"] = torch.ones_like(schedule.betas)
    else:
        columns["x_to_prev"], columns["x0_to_prev"] = schedule.posterior_mean_x, schedule.posterior_mean_x0
    drawn = torch.ones_like(schedule.betas)
    drawn[0] = 0  # the last step taken lands on the image: no noise, though its guidance keeps the variance
    low, high = process.log_variance_bounds()
    if process.variance_type.learned:
        columns |= {"guidance_variance": torch.ones_like(drawn), "noise_std": drawn}
    else:
        columns |= {"guidance": process.fixed_variance(), "noise": drawn * (0.5 * low).exp()}
    columns |= {"low_log_variance": low, "high_log_variance": high}
    return _table(process, columns, rescale_timesteps)


def ddim_table(
    process: Process, eta: float, *, clip_denoised: bool = True, rescale_timesteps: bool = False
) -> SamplerTable:
    """DDIM (Song et al. 2021, Eq. 12); guided by ADM's Algorithm 2: eps moves by -sqrt(1 - alpha_bar) g.

    eps is derived again from the clamped pred_x0, also where the network predicts eps; the guided pred_x0 is not
    clamped again.
    """
    schedule = process.schedule
    alpha_bar, previous = schedule.alpha_bar, schedule.alpha_bar_prev
    std = eta * ((1 - previous) / (1 - alpha_bar)).sqrt() * (1 - alpha_bar / previous).sqrt()
    direction = (1 - previous - std**2).clamp(min=0).sqrt()  # of eps in x_prev; rounding may take it below 0 at eta 1
    columns = _prediction_columns(process, clip_denoised)
    columns |= _along_eps(process, previous, direction)
    guided = (1 - alpha_bar).sqrt()
    columns["guidance"] = guided * (previous.sqrt() * schedule.sigma - direction)
    columns["guidance_x0"] = guided * schedule.sigma
    std[0] = 0
    columns["noise"] = std
    return _table(process, columns, rescale_timesteps)


def reverse_ddim_table(
    process: Process, *, clip_denoised: bool = True, rescale_timesteps: bool = False
) -> SamplerTable:
    """DDIM's ODE from image to noise: eta 0, no guidance. Row 0 is the step at t = 0; the last ends at alpha_bar 0."""
    columns = _prediction_columns(process, clip_denoised)
    onward = process.schedule.alpha_bar_next
    columns |= _along_eps(process, onward, (1 - onward).sqrt())
    table = _table(process, columns, rescale_timesteps)
    return SamplerTable(table.rows.flip(0), table.timesteps.flip(0))


def _prediction_columns(process: Process, clip_denoised: bool) -> dict[str, Tensor]:
    schedule = process.schedule
    ones = torch.ones_like(schedule.betas)
    match process.mean_type:
        case MeanType.EPSILON:
            x_to_x0, out_to_x0 = schedule.x0_from_x, schedule.sigma
        case MeanType.START_X:
            x_to_x0, out_to_x0 = 0 * ones, -ones
        case MeanType.PREVIOUS_X:
            x_to_x0 = -schedule.posterior_mean_x / schedule.posterior_mean_x0
            out_to_x0 = -1 / schedule.posterior_mean_x0
    return {"x_to_x0": x_to_x0, "out_to_x0": out_to_x0, "clamp": ones if clip_denoised else ones * torch.inf}


def _along_eps(process: Process, alpha_bar: Tensor, direction: Tensor) -> dict[str, Tensor]:
    # sqrt(alpha_bar) pred_x0 + direction * eps, with eps = (x0_from_x x - pred_x0) / sigma
    slope = direction / process.schedule.sigma
    return {"x_to_prev": slope * process.schedule.x0_from_x, "x0_to_prev": alpha_bar.sqrt() - slope}


def _table(process: Process, columns: dict[str, Tensor], rescale_timesteps: bool) -> SamplerTable:
    zeros = torch.zeros_like(process.schedule.betas)
    coefficients = Coefficients(**{name: columns.get(name, zeros) for name in COLUMNS})
    rows = torch.stack([getattr(coefficients, name) for name in COLUMNS], dim=1)
    timesteps = process.schedule.network_timesteps(rescale=rescale_timesteps)
    return SamplerTable(rows.flip(0), timesteps.flip(0))  # schedules ascend in noise, sampling descends


def take_step(rows: Tensor, x: Tensor, output: Tensor, guidance: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One reverse step of a batch whose images are each at a row of their own; returns (x_prev, pred_x0).

    Shapes: rows [N, len(COLUMNS)]; x, guidance, noise and the results [N, C, H, W]; output [N, C or 2C, H, W], the
    second C channels being the variance values v.
    Units: x in [-1, 1]; guidance is guidance_scale * grad_x log p(y | x_t), None where no row is guided.
    """
    shaped = rows.to(x.dtype)[:, :, None, None, None].unbind(1)
    c = Coefficients(*shaped)
    out, v = (output, None) if output.shape[1] == x.shape[1] else output.chunk(2, dim=1)
    pred_x0 = (c.x_to_x0 * x - c.out_to_x0 * out).clamp(-c.clamp, c.clamp)
    x_prev = c.x0_to_prev * pred_x0 + c.x_to_prev * x + c.out_to_prev * out
    std = c.noise
    if v is not None:
        fraction = (v + 1) / 2
        log_variance = fraction * c.high_log_variance + (1 - fraction) * c.low_log_variance
        std = c.noise + c.noise_std * (0.5 * log_variance).exp()
    if guidance is not None:
        weight = c.guidance if v is None else c.guidance + c.guidance_variance * log_variance.exp()
        x_prev = x_prev + weight * guidance
        pred_x0 = pred_x0 + c.guidance_x0 * guidance
    return x_prev + std * noise, pred_x0
