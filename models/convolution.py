"""Convolutions that choose no kernel by the number of images, and whose weights may be packed for their kernels.

For a batch of one small image, and on one thread for 1x1 kernels below 16 images, torch leaves oneDNN for an older
kernel, which rounds differently: without these a lone image would have to be computed at two rows to come out as among
others, and its guidance on one thread at sixteen (measured on a CPU in float32). Training is torch's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL = 256 * 2**20  # bytes of a network's weights
ALIGNED = 16  # float32 in a line of a CPU's cache, and in its widest vectors


def _chooses_by_rows(x: Tensor, weight: Tensor) -> bool:
    plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    # on several threads torch's own backward agrees from two rows on, and turns no kernels
    torchs = torch.is_grad_enabled() and (weight.requires_grad or (x.requires_grad and torch.get_num_threads() > 1))
    return plain and not torchs and torch.backends.mkldnn.is_available()


class _Convolution(torch.autograd.Function):
    """oneDNN's convolution of stride 1, and its gradient by the image, which is one too: with the kernels turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        ctx.weight, ctx.padding = weight, padding
        return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1), (1, 1), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        turned = ctx.weight.flip(2, 3).transpose(0, 1).contiguous()
        padding = [size - 1 - each for size, each in zip(turned.shape[2:], ctx.padding, strict=True)]
        return torch.mkldnn_convolution(gradient, turned, None, padding, (1, 1), (1, 1), 1), None, None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        convolved: Tensor = _Convolution.apply(x, weight, bias, padding)  # type: ignore[no-untyped-call] # torch's
        return convolved
    return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1), (1, 1), 1)


class _Packable(nn.Module):
    """A convolution whose weights may be packed, for batches and, where lone is not None, for a single row apart."""

    weight: Tensor
    bias: Tensor | None
    lone: Tensor | None = None

    def _convolve_packed(self, x: Tensor, padding: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """The result is channels-last."""
        assert not (torch.is_grad_enabled() and x.requires_grad), "packed weights have no gradient"
        weight = self.weight if self.lone is None or len(x) > 1 else self.lone
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, padding, stride, (1, 1), 1, "none", [], ""
        )
        return convolved


class Conv2d(_Packable, nn.Conv2d):
    """nn.Conv2d whose images come out the same however few there are.

    On one thread so does the gradient by an image, at stride 1 alone. There is no dilation, no groups and no padding
    but by zeros: the kernels called here, and the packing of weights, take none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # asked first: to ask a weight how it is laid out would break the graph
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        if self.weight.is_mkldnn:
            return self._convolve_packed(x, padding, self.stride)
        if not _chooses_by_rows(x, self.weight):
            return super().forward(x)
        if self.stride == (1, 1):
            return _convolve(x, self.weight, self.bias, padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, (1, 1), 1)


class Conv1d(_Packable, nn.Conv1d):
    """nn.Conv1d of kernel size 1 whose rows come out the same however few there are."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # on one thread a matrix product for each image, whose kernel is chosen by where in memory its result begins
            length = x.shape[-1]
            return super().forward(F.pad(x, (0, -length % ALIGNED)))[..., :length]
        if self.weight.is_mkldnn:
            return self._convolve_packed(x.unsqueeze(2), (0, 0), (1, 1)).squeeze(2)
        if not _chooses_by_rows(x, self.weight):
            return super().forward(x)
        return _convolve(x.contiguous().unsqueeze(2), self.weight.unsqueeze(2), self.bias, (0, 0)).squeeze(2)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be packed for such a device and arithmetic."""
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


@torch.no_grad()
def pack_weights(network: nn.Module, rows: int, run: Callable[[], object]) -> None:
    """Lay the weights of a network's convolutions out as their kernels take them: once, and not at every call.

    They are replaced, and have no gradient any more; what is packed already stays. run computes the network, which
    tells the sizes of maps. The layout is chosen for so many rows and serves all; but a single row may take another,
    and to lay the weights of a small network out anew takes as long as the row. Such a network keeps both.
    Source: torch's own freezing, torch/_inductor/fx_passes/mkldnn_fusion.py.
    """
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes[module] = tuple(inputs[0].shape[1:])

    plain = [each for each in network.modules() if isinstance(each, Conv2d | Conv1d) and not each.weight.is_mkldnn]
    hooks = [each.register_forward_pre_hook(note) for each in plain]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    small = sum(each.weight.nbytes for each in plain) <= SMALL
    for each in plain:
        weight, size = each.weight, sizes[each]
        if isinstance(each, Conv1d):  # as a map of one line
            weight, size = weight.unsqueeze(2), (size[0], 1, size[1])
        padding, stride = (cast(tuple[int, ...], pair)[-1:] * 2 for pair in (each.padding, each.stride))
        pack = partial(torch.ops.mkldnn._reorder_convolution_weight, weight, padding, stride, (1, 1), 1)
        each.weight = nn.Parameter(pack((rows, *size)), requires_grad=False)
        each.lone = pack((1, *size)) if small else None
