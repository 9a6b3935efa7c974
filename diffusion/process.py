"""Interprets a network's output as the distribution p(x_{t-1} | x_t), in the official parametrisations.

Source: guided-diffusion (MIT), gaussian_diffusion.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.grey import channel_mean, grey_eps
from diffusion.schedule import Schedule
from diffusion.transfer import upload


class MeanType(Enum):
    """The quantity that a network's first output channels predict."""

    EPSILON = "eps"
    START_X = "x0"
    PREVIOUS_X = "x_prev"


class VarianceType(Enum):
    """The source of the reverse variance: the schedule, or the second half of the output's channels."""

    FIXED_SMALL = "fixed_small"
    FIXED_LARGE = "fixed_large"
    LEARNED = "learned"
    LEARNED_RANGE = "learned_range"

    @property
    def learned(self) -> bool:
        return self in (VarianceType.LEARNED, VarianceType.LEARNED_RANGE)


class Prediction(NamedTuple):
    """p(x_{t-1} | x_t): all [N, C, H, W]."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    pred_x0: Tensor


def gather(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] of a float64 array, then cast to like's dtype, moved to its device, and shaped to broadcast over it.

    t may be on the host, like the array; then the host does not wait for the device.
    """
    return upload(values.to(t.device)[t].to(like.dtype), like.device).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class DiffusionProcess:
    """A schedule together with the network's inputs and outputs.

    `t` is always a step of this schedule, int64 [N], and not an original timestep. rescale_timesteps: networks get
    timesteps in thousandths of the schedule. grey: the channels of x_0 are equal, and those of its predictions are made
    equal; not for networks that predict x_prev.
    """

    schedule: Schedule
    mean_type: MeanType = MeanType.EPSILON
    variance_type: VarianceType = VarianceType.LEARNED_RANGE
    rescale_timesteps: bool = False
    grey: bool = False

    @property
    def network_timesteps(self) -> Tensor:
        """The timestep input of the networks for each step of the schedule: [T]."""
        return self.schedule.network_timesteps(rescale=self.rescale_timesteps)

    def respaced(self, timesteps: Sequence[int]) -> "DiffusionProcess":
        """The diffusion process that visits only these of the schedule's steps. Raises: ValueError if none is kept."""
        return replace(self, schedule=self.schedule.respaced(timesteps))

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Add the noise of step t to clean images (Ho et al. 2020, Eq. 4)."""
        alpha_bar = self.schedule.alpha_bar
        return gather(alpha_bar.sqrt(), t, x0) * x0 + gather((1 - alpha_bar).sqrt(), t, x0) * noise

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0); the last two broadcast over x0."""
        schedule = self.schedule
        mean = gather(schedule.posterior_mean_x0, t, x_t) * x0 + gather(schedule.posterior_mean_x, t, x_t) * x_t
        return mean, gather(schedule.posterior_variance, t, x_t), gather(schedule.posterior_log_variance, t, x_t)

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return gather(self.schedule.x0_from_x, t, x_t) * x_t - gather(self.schedule.sigma, t, x_t) * eps

    def x0_from_previous(self, x_t: Tensor, t: Tensor, x_prev: Tensor) -> Tensor:
        """x_0 whose posterior mean at x_t is x_prev."""
        schedule = self.schedule
        ratio = schedule.posterior_mean_x / schedule.posterior_mean_x0
        return gather(1 / schedule.posterior_mean_x0, t, x_t) * x_prev - gather(ratio, t, x_t) * x_t

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean prediction, and the variance values if they are learned, else None."""
        if not self.variance_type.learned:
            return output, None
        predicted, v = output.chunk(2, dim=1)
        return predicted, v

    def as_grey(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """A network's output, changed to predict a grey x_0 and the same variance in every channel."""
        assert self.mean_type is not MeanType.PREVIOUS_X
        predicted, v = self.split(output)
        if self.mean_type is MeanType.START_X:
            predicted = channel_mean(predicted)
        else:
            predicted = grey_eps(predicted, x_t, gather((1 - self.schedule.alpha_bar).sqrt(), t, x_t))
        return predicted if v is None else torch.cat([predicted, channel_mean(v)], dim=1)

    def log_variance_bounds(self) -> tuple[Tensor, Tensor]:
        """(low, high) of log variance for v = -1 and v = 1, per step; equal if the variance is fixed.

        LEARNED's output is the log variance itself, which is the same interpolation between -1 and 1.
        """
        schedule = self.schedule
        small, ones = schedule.posterior_log_variance, torch.ones_like(schedule.betas)
        match self.variance_type:
            case VarianceType.LEARNED_RANGE:
                return small, schedule.betas.log()
            case VarianceType.LEARNED:
                return -ones, ones
            case VarianceType.FIXED_SMALL:
                return small, small
            case VarianceType.FIXED_LARGE:
                return self._large_log_variance(), self._large_log_variance()

    def _large_log_variance(self) -> Tensor:
        # The first beta would blur the last step; the official code puts the second posterior variance there.
        return torch.cat([self.schedule.posterior_log_variance[:1], self.schedule.betas[1:].log()])

    def fixed_variance(self) -> Tensor:
        """Variance per step of a fixed type: FIXED_SMALL is 0 at the first step, unlike its clipped log."""
        assert not self.variance_type.learned
        if self.variance_type is VarianceType.FIXED_SMALL:
            return self.schedule.posterior_variance
        rest = self.schedule.betas[1:]
        return torch.cat([self.schedule.posterior_variance[1:2] if len(rest) else self.schedule.betas, rest])

    def log_variance(self, v: Tensor | None, t: Tensor, like: Tensor) -> Tensor:
        low, high = (gather(bound, t, like) for bound in self.log_variance_bounds())
        if v is None:
            return low.expand_as(like)
        if self.variance_type is VarianceType.LEARNED:
            return v
        fraction = (v + 1) / 2
        return fraction * high + (1 - fraction) * low

    def predict(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        *,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> Prediction:
        """Read a network's output at x_t as p(x_{t-1} | x_t).

        Shapes: output [N, C or 2C, H, W], x_t [N, C, H, W], t [N]. denoised_fn acts on pred_x0 before the clamp.
        With PREVIOUS_X the mean is the output itself; clamping changes only the reported pred_x0.
        """
        predicted, v = self.split(output)
        log_variance = self.log_variance(v, t, x_t)
        variance = log_variance.exp() if v is not None else gather(self.fixed_variance(), t, x_t).expand_as(x_t)
        pred_x0 = self.to_x0(predicted, x_t, t)
        if denoised_fn is not None:
            pred_x0 = denoised_fn(pred_x0)
        if clip_denoised:
            pred_x0 = pred_x0.clamp(-1, 1)
        mean = predicted if self.mean_type is MeanType.PREVIOUS_X else self.q_posterior(pred_x0, x_t, t)[0]
        return Prediction(mean, variance, log_variance, pred_x0)

    def to_x0(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        match self.mean_type:
            case MeanType.EPSILON:
                return self.x0_from_eps(x_t, t, predicted)
            case MeanType.START_X:
                return predicted
            case MeanType.PREVIOUS_X:
                return self.x0_from_previous(x_t, t, predicted)
