"""Compares row shapes bit for bit before a stage serves: the second check, after the argument of docs/decisions/0014.

First each layer is compared on sums that cancel, so that only their rounding remains, and then the whole networks on
states of real trajectories. Half precision rounds most differences away, so layers are compared in float32 too: a shape
that disagrees there is used in no precision.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.row_shapes import agreeing_shapes
from engine.stage import Stage
from engine.trajectory import ImageRequest, StagePlan, Trajectory
from models.networks.attention import AttentionBlock, AttentionPool, attend
from models.networks.convolution import Conv1d, Conv2d
from models.networks.linear import Linear
from models.networks.norm import GroupNorm32

Probe = tuple[Callable[[Tensor], Tensor], Tensor, Tensor]
"""A layer, input rows, and gradients with respect to its outputs: [N, ...] each."""

STEPS = 8  # of the trajectories whose states are compared
SCALES = (0.5, 1.0, 4.0, 10.0)  # guidance scales of these trajectories
MOST_DRAWN = 2**18  # random values per comparison
PROBED = Conv2d | Conv1d | GroupNorm32 | AttentionBlock | AttentionPool | Linear


def trajectory_states(stage: Stage, count: int) -> list[Trajectory]:
    """States of images between two steps, each with another seed, class, scale and timestep."""
    plan = StagePlan(stage.name, "ddpm", min(STEPS, stage.process.schedule.num_original))
    table = stage.table(plan)
    classes = stage.networks.network.config.num_classes or 1
    conditions = 0 if stage.networks.guide is None else stage.networks.guide.num_conditions
    states = []
    for row in range(count):
        target = ((row % conditions, 1.0),) if conditions else ()
        scale = SCALES[row % len(SCALES)] if conditions else 0.0
        request = ImageRequest("", row, row, (plan,), row % classes, target, scale)
        x = stage.starting_noise(row, row)
        states.append(Trajectory(request, table, x, x[:, ::2, ::2].clamp(-1, 1)))
    for step in range(len(table) - 1):
        moving = [row for row in range(count) if row % len(table) > step]
        if moving:
            for row, moved in zip(moving, stage.step([states[row] for row in moving]), strict=True):
                states[row] = moved
    return states


def layer_shapes(
    module: nn.Module, run: Callable[[], object], candidates: Sequence[int], *, with_gradient: bool
) -> tuple[int, ...]:
    """Return the candidates on which every layer of a network agrees; `run` calls the network, to record map sizes."""
    shapes = tuple(candidates)
    for layer, x, upstream in _layers(module, run, shapes[-1]):
        shapes = agreeing_shapes(partial(_results, layer, x, upstream if with_gradient else None), shapes, windows=1)
    return shapes


def _layers(module: nn.Module, run: Callable[[], object], count: int) -> Iterator[Probe]:
    """The comparison of each layer that differs from the others in kind or size."""
    sizes: dict[nn.Module, torch.Size] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes[layer] = inputs[0].shape[1:]

    hooks = [each.register_forward_pre_hook(note) for each in module.modules() if isinstance(each, PROBED)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    seen = set()
    for layer, size in sizes.items():
        key = (str(layer), getattr(layer, "num_heads", None), size)
        if key not in seen:
            seen.add(key)
            yield from _probes(layer, size, count)


def _probes(layer: nn.Module, size: torch.Size, count: int) -> Iterator[Probe]:
    drawn = partial(_drawn, count, device=next(layer.parameters()).device)
    if isinstance(layer, Conv1d | Conv2d):
        for dtype in {layer.weight.dtype, torch.float32}:
            twin = _cancelling(layer, size, count, dtype)
            yield twin, drawn(size, halves=True), drawn(_result_size(twin, size), halves=True)
    elif isinstance(layer, AttentionBlock | AttentionPool):
        qkv = layer.qkv if isinstance(layer, AttentionBlock) else layer.qkv_proj
        length = size[1:].numel() + isinstance(layer, AttentionPool)
        new_order = isinstance(layer, AttentionPool) or layer.new_order
        attention = partial(attend, num_heads=layer.num_heads, new_order=new_order)
        yield attention, drawn(torch.Size((qkv.out_channels, length))), drawn(torch.Size((size[0], length)))
    else:
        result = torch.Size((layer.out_features,)) if isinstance(layer, Linear) else size
        yield layer, drawn(size), drawn(result)


def _results(layer: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor | None, rows: Sequence[int]) -> Tensor:
    """A layer's outputs for some rows of x; if `upstream` gives their gradients, also the gradients of the rows."""
    chosen = _as_maps(_numbered(x, rows))
    if upstream is None:
        return layer(chosen).flatten(1).float()
    with torch.enable_grad():
        y = layer(chosen.requires_grad_())
        # a sum, because autograd imports sympy, which takes half a second, to check given gradients
        total = (y * _as_maps(_numbered(upstream, rows).to(y.dtype))).sum()
    (gradient,) = torch.autograd.grad(total, chosen)
    return torch.cat([y.detach().flatten(1).float(), gradient.flatten(1).float()], dim=1)


def _numbered(x: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows with these numbers; for large maps few rows are drawn, and they are repeated."""
    return x[[row % len(x) for row in rows]]


def _as_maps(x: Tensor) -> Tensor:
    """The tensor in channels-last layout, as in serving."""
    if x.ndim == 3:
        return x.mT.contiguous().mT
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _drawn(count: int, size: torch.Size, *, device: torch.device, halves: bool = False) -> Tensor:
    """Random rows of many magnitudes; with halves, the second half of the channels repeats the first.

    For large maps few rows are drawn and repeated, because drawing takes longer than comparing.
    """
    drawn = (min(count, max(2, MOST_DRAWN // size.numel())), *size)
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(drawn, generator=generator) * 2.0 ** torch.randint(-4, 5, drawn, generator=generator)
    if halves:
        half = size[0] // 2
        x[:, half : 2 * half] = x[:, :half]
    return x.to(device)


def _cancelling(layer: Conv1d | Conv2d, size: torch.Size, count: int, dtype: torch.dtype) -> Conv1d | Conv2d:
    """A convolution of the same shape whose sums cancel on repeated halves, so that only rounding errors remain.

    These errors show the order of summation, also in half precision, which rounds most other differences away.
    """
    kernel = layer.kernel_size[0]
    twin: Conv1d | Conv2d
    if isinstance(layer, Conv2d):
        stride, padding = layer.stride[0], int(layer.padding[0])
        twin = Conv2d(layer.in_channels, layer.out_channels, kernel, stride=stride, padding=padding)
    else:
        twin = Conv1d(layer.in_channels, layer.out_channels, kernel)
    twin.requires_grad_(False).to(layer.weight.device, dtype)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(twin.weight.shape, generator=generator)
    for dim in (0, 1):
        half = weights.shape[dim] // 2
        weights.narrow(dim, half, half).copy_(-weights.narrow(dim, 0, half))
        weights.narrow(dim, 2 * half, weights.shape[dim] - 2 * half).zero_()
    twin.weight.copy_(weights)
    if twin.bias is not None:
        twin.bias.zero_()
    if layer.weight.is_mkldnn and dtype == layer.weight.dtype:
        twin.pack(
            count, (1, *size[1:])[-2:], with_gradient=layer.packed is not None and layer.packed.transposed is not None
        )
    return twin


def _result_size(layer: Conv1d | Conv2d, size: torch.Size) -> torch.Size:
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    return torch.Size((layer.out_channels, *((each + 2 * padding - kernel) // stride + 1 for each in size[1:])))
