"""Convolutions that choose no kernel by the number of images, and whose weights may be packed for their kernels.

For a batch of one small image, and on one thread for 1x1 kernels below 16 images, torch leaves oneDNN for an older
kernel, which rounds differently and is slower: without these a lone image would have to be computed at two rows to come
out as among others (measured on a CPU in float32). Training and gradients are torch's own.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def _chooses_by_rows(x: Tensor) -> bool:
    plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose images come out the same however few there are; zero padding alone."""

    def forward(self, x: Tensor) -> Tensor:
        padding = cast(tuple[int, ...], self.padding)
        if self.weight.is_mkldnn:
            return _convolve_packed(x, self.weight, self.bias, padding, self.stride)
        if not _chooses_by_rows(x) or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class Conv1d(nn.Conv1d):
    """nn.Conv1d of kernel size 1 whose rows come out the same however few there are."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.is_mkldnn:
            return _convolve_packed(x.unsqueeze(2), self.weight, self.bias, (0, 0), (1, 1)).squeeze(2)
        if not _chooses_by_rows(x) or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        weight = self.weight.unsqueeze(2)
        return torch.mkldnn_convolution(x.unsqueeze(2), weight, self.bias, (0, 0), (1, 1), (1, 1), 1).squeeze(2)


def _convolve_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """The result is channels-last."""
    assert not (torch.is_grad_enabled() and x.requires_grad), "packed weights have no gradient"
    convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, (1, 1), 1, "none", [], ""
    )
    return convolved


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights can be packed for such a device and arithmetic."""
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


@torch.no_grad()
def pack_weights(network: nn.Module, rows: int, run: Callable[[], object]) -> None:
    """Lay the weights of a network's convolutions out as their kernels take them: once, and not at every call.

    They are replaced: a second copy is kept of none, and they have no gradient any more. What is packed already stays.
    run computes the network, which tells the sizes of maps; the layout is chosen for so many rows and serves all.
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
    for each in plain:
        weight, size = each.weight, sizes[each]
        if isinstance(each, Conv1d):  # as a map of one line
            weight, size = weight.unsqueeze(2), (size[0], 1, size[1])
        padding, stride = (cast(tuple[int, ...], pair)[-1:] * 2 for pair in (each.padding, each.stride))
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, (1, 1), 1, (rows, *size))
        each.weight = nn.Parameter(packed, requires_grad=False)
