"""Group norm of channels-last maps on a CPU, and its gradient, in float32.

Convolutions return such maps. torch's kernel for them divides one image among threads if the number of threads does not
divide the batch size, and then sums in another order. This module is also faster, most of all for modulated norms.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_channels_last(x: Tensor) -> bool:
    """Return whether a CPU's map [N, C, ...] has each position's channels contiguous (channels-last)."""
    if x.ndim == 4:
        return x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)
    return x.is_cpu and x.ndim == 3 and x.mT.is_contiguous()


class NormCall(NamedTuple):
    """The arguments of a group norm beside x, for silu(norm(x) * (1 + scale) + shift); absent parts are skipped.

    Shapes: weight and bias [C]; scale and shift [N, C, 1, ...], both or none.
    """

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    scale: Tensor | None = None
    shift: Tensor | None = None
    silu: bool = False


def group_norm(x: Tensor, call: NormCall) -> Tensor:
    """Compute a norm of a channels-last map [N, C, ...]; the result is like x.

    weight and bias are float32, and so is everything between reading x and writing the result. Only x gets a gradient.
    """
    groups, weight, bias, eps, scale, shift, silu = call
    weight, bias = weight.float(), bias.float()
    if scale is not None and shift is not None:
        factor = 1 + scale.float().flatten(1)
        weight, bias = weight * factor, bias * factor + shift.float().flatten(1)
    pixels, weight, bias = x.flatten(2).mT, weight.expand(x.shape[:2]), bias.expand(x.shape[:2])
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _GroupNorm.apply(pixels, groups, weight, bias, eps, silu)  # type: ignore[no-untyped-call]  # torch's
    else:
        distances, rstd = _centred(pixels, groups, eps)
        y = _values(distances, rstd, weight, bias, silu, out=distances).to(x.dtype)
    return y.mT.reshape(x.shape)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Sums of values [N, C] over each channel's group: [N, C]."""
    sums: Tensor = x.unflatten(1, (groups, -1)).sum(-1, keepdim=True)
    return sums.expand(-1, -1, x.shape[1] // groups).flatten(1)


def _centred(pixels: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The values minus their group's mean, [N, P, C], and one over the group's deviation for each channel, [N, C]."""
    size = pixels[0].numel() / groups
    exact = pixels.float()
    means = (_by_group(exact.sum(1), groups) / size)[:, None]
    distances = torch.sub(exact, means, out=None if exact is pixels else exact)
    return distances, (_by_group(distances.square().sum(1), groups) / size + eps).rsqrt()


def _values(
    distances: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, silu: bool, out: Tensor | None = None
) -> Tensor:
    h = torch.addcmul(bias[:, None], distances, (rstd * weight)[:, None], out=out)
    return F.silu(h, inplace=True) if silu else h


class _GroupNorm(torch.autograd.Function):
    """Group norm of [N, P, C], with a gain and a bias [N, C], which get no gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        distances, rstd = _centred(pixels, groups, eps)
        ctx.save_for_backward(distances, rstd, weight, bias)
        ctx.groups, ctx.silu, ctx.dtype = groups, silu, pixels.dtype
        return _values(distances, rstd, weight, bias, silu).to(pixels.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """dx = rstd * (dn - mean(dn) - n * mean(dn * n)), n = distances * rstd, dn its gradient, means over groups."""
        distances, rstd, weight, bias = ctx.saved_tensors
        gain, dy = rstd * weight, dy.float()
        if ctx.silu:
            dy = torch.ops.aten.silu_backward(dy, _values(distances, rstd, weight, bias, False))
        size = distances[0].numel() / ctx.groups
        mean_one = _by_group(weight * dy.sum(1), ctx.groups) / size
        mean_normed = _by_group(gain * (dy * distances).sum(1), ctx.groups) / size
        dx = torch.addcmul((-rstd * mean_one)[:, None], dy, gain[:, None])
        dx.addcmul_(distances, (-rstd.square() * mean_normed)[:, None])
        return dx.to(ctx.dtype), *[None] * 5
