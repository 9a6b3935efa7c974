"""Group norm, scale and shift, and SiLU in one Triton kernel, and their gradient to the input in another.

A program computes one group of one image, so results do not depend on other rows. It reads blocks of [positions,
channels] in any memory layout, and computes in float32. This module needs Triton, a part of CUDA's torch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.networks.channel_norm import NormCall

VERSION: str = triton.__version__
BLOCK = 4096  # elements that a program reads at a time
WARPS = 8


@triton.jit
def _block(start, positions, channel, in_group, stride_channel, stride_position, POSITIONS: tl.constexpr):
    """Offsets within an image of a group's block, and a mask of the existing ones: [POSITIONS, channels]."""
    position = start + tl.arange(0, POSITIONS)
    offsets = position[:, None] * stride_position + channel[None, :] * stride_channel
    return offsets, (position < positions)[:, None] & in_group[None, :]


@triton.jit
def _read(image, start, positions, channel, in_group, stride_channel, stride_position, POSITIONS: tl.constexpr):
    """A block of a group in float32, 0 outside the map, and a mask of the existing values: [POSITIONS, channels]."""
    offsets, inside = _block(start, positions, channel, in_group, stride_channel, stride_position, POSITIONS)
    return tl.load(image + offsets, mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def _affine(weight, bias, scale, shift, channel, in_group, MODULATED: tl.constexpr):
    """The norm's own gain and bias by channel, and 1 + scale and shift."""
    gain = tl.load(weight + channel, mask=in_group, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=in_group, other=0.0).to(tl.float32)
    factor = tl.zeros_like(gain) + 1.0
    moved = tl.zeros_like(gain)
    if MODULATED:
        factor += tl.load(scale + channel, mask=in_group, other=0.0).to(tl.float32)
        moved += tl.load(shift + channel, mask=in_group, other=0.0).to(tl.float32)
    return gain, offset, factor, moved


@triton.jit
def _forward_kernel(
    x, y, weight, bias, scale, shift, means, rstds,
    positions, eps, x_image, x_channel, x_position, y_image, y_channel, y_position, scale_image, shift_image,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, MODULATED: tl.constexpr, SILU: tl.constexpr,
    POSITIONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image = (program // GROUPS).to(tl.int64)  # a batch may have more than 2**31 elements
    within = tl.arange(0, WIDTH)
    in_group = within < CHANNELS
    channel = program % GROUPS * CHANNELS + within
    x += image * x_image
    y += image * y_image

    # Chan et al. 1979: each block's mean and squared deviations are combined with those before. The group's first value
    # is subtracted from all values, so that no digits cancel if the values are far from 0.
    pivot = tl.load(x + program % GROUPS * CHANNELS * x_channel).to(tl.float32)
    count = 0.0
    mean = 0.0
    deviations = 0.0
    for start in range(0, positions, POSITIONS):
        values, inside = _read(x, start, positions, channel, in_group, x_channel, x_position, POSITIONS)
        distances = tl.where(inside, values - pivot, 0.0)
        fresh = tl.sum(inside.to(tl.float32))
        fresh_mean = tl.sum(distances) / fresh
        apart = tl.where(inside, distances - fresh_mean, 0.0)
        delta = fresh_mean - mean
        deviations += tl.sum(apart * apart) + delta * delta * count * (fresh / (count + fresh))
        mean += delta * (fresh / (count + fresh))
        count += fresh
    rstd = 1.0 / tl.sqrt(deviations / count + eps)
    tl.store(means + program, mean)
    tl.store(rstds + program, rstd)

    gain, offset, factor, moved = _affine(
        weight, bias, scale + image * scale_image, shift + image * shift_image, channel, in_group, MODULATED
    )
    slope, height = gain * factor, offset * factor + moved
    for start in range(0, positions, POSITIONS):
        values, inside = _read(x, start, positions, channel, in_group, x_channel, x_position, POSITIONS)
        result = (values - pivot - mean) * rstd * slope[None, :] + height[None, :]
        if SILU:
            result = result * tl.sigmoid(result)
        offsets, inside = _block(start, positions, channel, in_group, y_channel, y_position, POSITIONS)
        tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _to_normed(x, dy, inside, pivot, mean, rstd, slope, height, SILU: tl.constexpr):
    """The normalised values of a block, and the gradient with respect to their affine image."""
    normed = tl.where(inside, (x - pivot - mean) * rstd, 0.0)
    if SILU:
        linear = normed * slope[None, :] + height[None, :]
        sigmoid = tl.sigmoid(linear)
        dy = dy * sigmoid * (1.0 + linear * (1.0 - sigmoid))
    return normed, dy


@triton.jit
def _backward_kernel(
    x, dy, dx, weight, bias, scale, shift, means, rstds, dscale, dshift,
    positions, x_image, x_channel, x_position, dy_image, dy_channel, dy_position, dx_image, dx_channel, dx_position,
    scale_image, shift_image,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, MODULATED: tl.constexpr, SILU: tl.constexpr,
    POSITIONS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image = (program // GROUPS).to(tl.int64)
    within = tl.arange(0, WIDTH)
    in_group = within < CHANNELS
    channel = program % GROUPS * CHANNELS + within
    x += image * x_image
    dy += image * dy_image
    dx += image * dx_image
    pivot = tl.load(x + program % GROUPS * CHANNELS * x_channel).to(tl.float32)
    mean = tl.load(means + program)
    rstd = tl.load(rstds + program)
    gain, offset, factor, moved = _affine(
        weight, bias, scale + image * scale_image, shift + image * shift_image, channel, in_group, MODULATED
    )
    slope, height = gain * factor, offset * factor + moved

    along_one = tl.zeros([WIDTH], tl.float32)  # sums by channel of the gradient, and of it times the normed values
    along_normed = tl.zeros([WIDTH], tl.float32)
    for start in range(0, positions, POSITIONS):
        values, inside = _read(x, start, positions, channel, in_group, x_channel, x_position, POSITIONS)
        given, inside = _read(dy, start, positions, channel, in_group, dy_channel, dy_position, POSITIONS)
        normed, dlinear = _to_normed(values, given, inside, pivot, mean, rstd, slope, height, SILU)
        along_one += tl.sum(dlinear, axis=0)
        along_normed += tl.sum(dlinear * normed, axis=0)
    if MODULATED:
        place = image * GROUPS * CHANNELS + channel
        tl.store(dscale + place, gain * along_normed + offset * along_one, mask=in_group)
        tl.store(dshift + place, along_one, mask=in_group)

    size = positions * CHANNELS
    mean_one = tl.sum(slope * along_one) / size
    mean_normed = tl.sum(slope * along_normed) / size
    for start in range(0, positions, POSITIONS):
        values, inside = _read(x, start, positions, channel, in_group, x_channel, x_position, POSITIONS)
        given, inside = _read(dy, start, positions, channel, in_group, dy_channel, dy_position, POSITIONS)
        normed, dlinear = _to_normed(values, given, inside, pivot, mean, rstd, slope, height, SILU)
        result = (dlinear * slope[None, :] - mean_one - normed * mean_normed) * rstd
        offsets, inside = _block(start, positions, channel, in_group, dx_channel, dx_position, POSITIONS)
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=inside)


def launch_options(channels: int, groups: int, positions: int, *, modulated: bool, silu: bool) -> dict[str, int]:
    """The constants for which the kernels are compiled, and the number of warps."""
    width: int = triton.next_power_of_2(channels // groups)
    return {
        "GROUPS": groups,
        "CHANNELS": channels // groups,
        "MODULATED": modulated,
        "SILU": silu,
        "POSITIONS": min(triton.next_power_of_2(positions), max(1, BLOCK // width)),
        "WIDTH": width,
        "num_warps": WARPS,
    }


def _launch(kernel: Any, x: Tensor, options: dict[str, int], *arguments: object) -> None:
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of the pointers
        kernel[(len(x) * options["GROUPS"],)](*arguments, **options)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        shift: Tensor,
        groups: int,
        eps: float,
        modulated: bool,
        silu: bool,
    ) -> Tensor:
        y = torch.empty_like(x)
        means, rstds = (torch.empty(len(x), groups, dtype=torch.float32, device=x.device) for _ in range(2))
        ctx.save_for_backward(x, weight, bias, scale, shift, means, rstds)
        ctx.options = launch_options(x.shape[1], groups, x.shape[2], modulated=modulated, silu=silu)
        strides = (*x.stride(), *y.stride(), scale.stride(0), shift.stride(0))
        tensors = (x, y, weight, bias, scale, shift, means, rstds)
        _launch(_forward_kernel, x, ctx.options, *tensors, x.shape[2], eps, *strides)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift, means, rstds = ctx.saved_tensors
        assert not ctx.needs_input_grad[1]
        dx = torch.empty_like(x)
        dscale, dshift = (torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))
        strides = (*x.stride(), *dy.stride(), *dx.stride(), scale.stride(0), shift.stride(0))
        tensors = (x, dy, dx, weight, bias, scale, shift, means, rstds, dscale, dshift)
        _launch(_backward_kernel, x, ctx.options, *tensors, x.shape[2], *strides)
        if not ctx.options["MODULATED"]:
            return dx, *[None] * 8
        return dx, None, None, dscale.to(scale.dtype), dshift.to(shift.dtype), *[None] * 4


def group_norm(x: Tensor, call: NormCall) -> Tensor:
    """Compute a norm of a map [N, C, ...]; the result is in its dtype and memory format.

    Everything between reading x and writing the result is float32. x, scale and shift get gradients, weight
    and bias none.
    """
    groups, weight, bias, eps, scale, shift, silu = call
    flat = x.reshape(*x.shape[:2], -1)  # a view of both memory formats
    modulated = scale is not None and shift is not None
    # a kernel cannot take absent tensors, so without modulation it gets some that it does not read
    moves = [each.reshape(x.shape[:2]) if each is not None else weight[None] for each in (scale, shift)]
    assert all(each.stride(1) == 1 for each in moves)
    options = (groups, eps, modulated, silu)
    y: Tensor = _GroupNorm.apply(flat, weight, bias, *moves, *options)  # type: ignore[no-untyped-call]  # torch's
    return y.reshape(x.shape)
