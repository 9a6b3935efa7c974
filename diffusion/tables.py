"""Samplers as coefficient tables: every step of every sampler, guided or not, is one formula with a row of numbers.

    pred_x0 = threshold(X x - E out + I g)
    x_prev  = A x + B pred_x0 + D out + M memory + (G + H var(v)) g + (S + K sqrt(var(v))) noise
    memory  = P x + Q (pred_x0 + R g)

with log var(v) between the row's two bounds. memory is the state that a second-order solver keeps for an image between
evaluations. For grey images (diffusion.grey) X x - E out, v and g are averaged over the channels. Rows are built once
in float64 per (schedule, sampler, eta, thresholding), one row per evaluation of the network; a step gathers one row per
image, so a batch mixes samplers, lengths, schedules and guidance scales without a branch.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.grey import channel_mean
from diffusion.process import DiffusionProcess, MeanType
from diffusion.schedule import Schedule
from diffusion.transfer import upload
from vocabulary.sampling import Thresholding

DYNAMIC_QUANTILE = 0.995  # of |pred_x0| over an image, the paper's choice (Saharia et al. 2022, section 2.3)


@dataclass(frozen=True)
class Coefficients:
    """The columns, [S] each, float64, one entry per row in order of execution (from noise to image)."""

    x_to_x0: Tensor  # X
    out_to_x0: Tensor  # E, subtracted
    guidance_to_x0: Tensor  # I, if the threshold acts on the guided prediction
    clamp: Tensor  # bound on |pred_x0|; infinite if it is not clipped
    quantile: Tensor  # for dynamic thresholding: the quantile of |pred_x0| that bounds it; 0 for none
    x_to_prev: Tensor  # A
    x0_to_prev: Tensor  # B
    out_to_prev: Tensor  # D, used if the network predicts x_prev itself
    memory_to_prev: Tensor  # M
    guidance: Tensor  # G
    guidance_variance: Tensor  # H
    noise: Tensor  # S
    noise_std: Tensor  # K
    low_log_variance: Tensor
    high_log_variance: Tensor
    guidance_x0: Tensor  # R, guidance of the reported pred_x0, which Algorithm 2 guides and Algorithm 1 does not
    x_to_memory: Tensor  # P
    x0_to_memory: Tensor  # Q
    grey: Tensor  # 1 if the channels of x_0 are equal, else 0


COLUMNS = [field.name for field in fields(Coefficients)]
QUANTILE, GREY, X_TO_X0, OUT_TO_X0 = (COLUMNS.index(name) for name in ("quantile", "grey", "x_to_x0", "out_to_x0"))


class Step(NamedTuple):
    """The results of a step, all [N, C, H, W]. memory is an input of the image's next step."""

    x_prev: Tensor
    pred_x0: Tensor
    memory: Tensor


@dataclass(frozen=True)
class SamplerTable:
    """rows [S, len(COLUMNS)], float64; row 0 is the first step taken.

    timesteps [S]: as the networks get them. original [S]: the original timesteps, which respacing does not renumber.
    """

    rows: Tensor
    timesteps: Tensor
    original: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def reversed(self) -> "SamplerTable":
        """The same rows from the last to the first."""
        return SamplerTable(self.rows.flip(0), self.timesteps.flip(0), self.original.flip(0))


def ddpm_table(process: DiffusionProcess, *, thresholding: Thresholding = "clip") -> SamplerTable:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2); guided by ADM's Algorithm 1: the mean moves by variance * g."""
    schedule = process.schedule
    columns = prediction_columns(process, thresholding)
    if process.mean_type is MeanType.PREVIOUS_X:
        columns["out_to_prev"] = torch.ones_like(schedule.betas)
    else:
        columns["x_to_prev"], columns["x0_to_prev"] = schedule.posterior_mean_x, schedule.posterior_mean_x0
    drawn = torch.ones_like(schedule.betas)
    drawn[0] = 0  # the last step taken goes to the image and draws no noise, but its guidance uses the variance
    low, high = process.log_variance_bounds()
    if process.variance_type.learned:
        columns |= {"guidance_variance": torch.ones_like(drawn), "noise_std": drawn}
    else:
        columns |= {"guidance": process.fixed_variance(), "noise": drawn * (0.5 * low).exp()}
    columns |= {"low_log_variance": low, "high_log_variance": high}
    return sampling_table(process, columns)


def ddim_table(process: DiffusionProcess, eta: float, *, thresholding: Thresholding = "clip") -> SamplerTable:
    """DDIM (Song et al. 2021, Eq. 12); guided by ADM's Algorithm 2: eps moves by -sqrt(1 - alpha_bar) g.

    eps is derived from the clamped pred_x0, even if the network predicts eps; the guided pred_x0 is not clamped again.
    """
    schedule = process.schedule
    alpha_bar, previous = schedule.alpha_bar, schedule.alpha_bar_prev
    std = eta * ((1 - previous) / (1 - alpha_bar)).sqrt() * (1 - alpha_bar / previous).sqrt()
    direction = (1 - previous - std**2).clamp(min=0).sqrt()  # of eps; rounding may make its square negative
    columns = score_columns(process, previous, direction, thresholding)
    std[0] = 0
    columns["noise"] = std
    return sampling_table(process, columns)


def reverse_ddim_table(process: DiffusionProcess, *, thresholding: Thresholding = "clip") -> SamplerTable:
    """DDIM's ODE from image to noise: eta 0, no guidance. Row 0 is the step at t = 0; the last ends at alpha_bar 0."""
    onward = process.schedule.alpha_bar_next
    columns = prediction_columns(process, thresholding) | _along_eps(process, onward, (1 - onward).sqrt())
    table = sampling_table(process, columns)
    return table.reversed()


def encoding_table(process: DiffusionProcess) -> SamplerTable:
    """Encodes an image to x_t of the schedule's last timestep, from which DDIM on the same steps returns to the image.

    It has one step fewer than there are timesteps: the image counts as x_t of the first, and the last step of
    reverse_ddim_table would go to noise of alpha_bar 0. Nothing is clipped, because decoding cannot undo a clip.
    """
    reverse = reverse_ddim_table(process, thresholding="none")
    return SamplerTable(reverse.rows[:-1], reverse.timesteps[:-1], reverse.original[:-1])


def scale_eps(table: SamplerTable, schedule: Schedule, eps_scale: float) -> SamplerTable:
    """Return the table with the predicted noise multiplied by eps_scale, for eps and x_0 predictions.

    A network that predicts too little noise leaves grain in images of samplers that draw no noise. schedule: the full
    schedule, which table.original indexes. Not for networks that predict x_prev.
    """
    rows = table.rows.clone()
    rows[:, X_TO_X0] = eps_scale * rows[:, X_TO_X0] + (1 - eps_scale) * schedule.x0_from_x[table.original]
    rows[:, OUT_TO_X0] *= eps_scale
    return SamplerTable(rows, table.timesteps, table.original)


def score_columns(
    process: DiffusionProcess, alpha_bar: Tensor, direction: Tensor, thresholding: Thresholding
) -> dict[str, Tensor]:
    """Columns [T], like the schedule's, of a step to sqrt(alpha_bar) pred_x0 + direction * eps, guided by Algorithm 2.

    Dynamic thresholding acts on the guided prediction, because it must bound the growth of that prediction with the
    guidance scale; the clamp acts before guidance, as in the official code.
    """
    schedule = process.schedule
    columns = prediction_columns(process, thresholding) | _along_eps(process, alpha_bar, direction)
    guided = (1 - schedule.alpha_bar).sqrt()  # coefficient of g, which is subtracted from eps
    if thresholding == "dynamic":
        return columns | {"guidance_to_x0": guided * schedule.sigma}
    guidance = guided * (alpha_bar.sqrt() * schedule.sigma - direction)
    return columns | {"guidance": guidance, "guidance_x0": guided * schedule.sigma}


def prediction_columns(process: DiffusionProcess, thresholding: Thresholding) -> dict[str, Tensor]:
    """Columns [T], like the schedule's, that turn the network's output into pred_x0 and bound it."""
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
    return {
        "x_to_x0": x_to_x0,
        "out_to_x0": out_to_x0,
        "clamp": ones if thresholding == "clip" else ones * torch.inf,
        "quantile": ones * (DYNAMIC_QUANTILE if thresholding == "dynamic" else 0),
        "grey": ones * process.grey,
    }


def _along_eps(process: DiffusionProcess, alpha_bar: Tensor, direction: Tensor) -> dict[str, Tensor]:
    # sqrt(alpha_bar) pred_x0 + direction * eps, with eps = (x0_from_x x - pred_x0) / sigma
    slope = direction / process.schedule.sigma
    return {"x_to_prev": slope * process.schedule.x0_from_x, "x0_to_prev": alpha_bar.sqrt() - slope}


def sampling_table(process: DiffusionProcess, columns: dict[str, Tensor]) -> SamplerTable:
    """The table of columns [T] that ascend in noise, like schedules; its rows descend. Missing columns are 0."""
    return SamplerTable(stack_columns(columns), process.network_timesteps, process.schedule.timestep_map).reversed()


def stack_columns(columns: dict[str, Tensor]) -> Tensor:
    """Rows [T, len(COLUMNS)] of columns [T]; missing columns are 0."""
    zeros = torch.zeros_like(columns["x_to_x0"])
    coefficients = Coefficients(**{name: columns.get(name, zeros) for name in COLUMNS})
    return torch.stack([getattr(coefficients, name) for name in COLUMNS], dim=1)


def take_step(
    rows: Tensor, x: Tensor, output: Tensor, guidance: Tensor | None, noise: Tensor, memory: Tensor | None = None
) -> Step:
    """One reverse step of a batch, in which each image has its own row.

    Shapes: rows [N, len(COLUMNS)], on the host like the tables, so that their values are known without waiting for the
    device; x, guidance, noise and memory [N, C, H, W]; output [N, C or 2C, H, W], the second C channels being the
    variance values v.
    Units: x in [-1, 1]; guidance is guidance_scale * grad_x log p(y | x_t), None if no row is guided; memory is that of
    the previous step, None at the first.
    """
    is_dynamic, is_grey = (bool((rows[:, column] > 0).any()) for column in (QUANTILE, GREY))
    c = Coefficients(*upload(rows.to(x.dtype), x.device)[:, :, None, None, None].unbind(1))
    out, v = (output, None) if output.shape[1] == x.shape[1] else output.chunk(2, dim=1)
    pred_x0 = c.x_to_x0 * x - c.out_to_x0 * out
    if is_grey:
        pred_x0 = _where_grey(c.grey, pred_x0)
        v = None if v is None else _where_grey(c.grey, v)
        guidance = None if guidance is None else _where_grey(c.grey, guidance)
    if guidance is not None:
        pred_x0 = pred_x0 + c.guidance_to_x0 * guidance
    pred_x0 = threshold(pred_x0, c.clamp, c.quantile if is_dynamic else None)
    x_prev = c.x0_to_prev * pred_x0 + c.x_to_prev * x + c.out_to_prev * out
    if memory is not None:
        x_prev = x_prev + c.memory_to_prev * memory
    std = c.noise
    if v is not None:
        fraction = (v + 1) / 2
        log_variance = fraction * c.high_log_variance + (1 - fraction) * c.low_log_variance
        std = c.noise + c.noise_std * (0.5 * log_variance).exp()
    if guidance is not None:
        weight = c.guidance if v is None else c.guidance + c.guidance_variance * log_variance.exp()
        x_prev = x_prev + weight * guidance
        pred_x0 = pred_x0 + c.guidance_x0 * guidance
    return Step(x_prev + std * noise, pred_x0, c.x_to_memory * x + c.x0_to_memory * pred_x0)


def _where_grey(grey: Tensor, values: Tensor) -> Tensor:
    """Values [N, C, H, W], averaged over the channels in rows of grey images; grey [N, 1, 1, 1]."""
    return torch.where(grey > 0, channel_mean(values), values)


def threshold(pred_x0: Tensor, clamp: Tensor, quantile: Tensor | None) -> Tensor:
    """Bound predictions. Where quantile is 0, clip them at clamp. Elsewhere (dynamic thresholding), clip them at that
    quantile s of their magnitudes, or at 1 if s is below 1, and divide by that bound.

    Shapes: pred_x0 [N, C, H, W], clamp and quantile [N, 1, 1, 1]; quantile is None if no row has one. s is the
    order statistic itself, without interpolation and rounding, so that no image depends on its neighbours.
    Source: Saharia et al. 2022, section 2.3.
    """
    if quantile is None:
        return pred_x0.clamp(-clamp, clamp)
    dynamic = quantile > 0
    ordered = pred_x0.abs().flatten(1).sort(dim=1).values
    place = (quantile * ordered.shape[1]).ceil().long().clamp(min=1) - 1
    largest = ordered.gather(1, place.flatten(1)).reshape(quantile.shape).clamp(min=1)
    bound = torch.where(dynamic, largest, clamp)
    return pred_x0.clamp(-bound, bound) / torch.where(dynamic, largest, 1)
