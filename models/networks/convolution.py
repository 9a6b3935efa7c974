"""Convolutions for serving: the same kernel for every batch size, prepacked weights, and a gradient of their own.

torch chooses another kernel, which rounds differently, for a batch of one small image and for the gradient. Here every
convolution on a CPU, and every gradient with respect to the image, is oneDNN's forward convolution
(docs/decisions/0014). Training and GPUs use torch's own.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.networks import opaque

ALIGNED = 16  # float32 in a line of a CPU's cache, and in its widest vectors
Pair = tuple[int, int]


def onednn_computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN convolves this dtype on this CPU; half precision needs AVX512 or newer instructions."""
    if not bool(torch.backends.mkldnn.is_available()):
        return False
    if dtype == torch.float32:
        return True
    onednn: Any = torch.ops.mkldnn
    return bool(onednn._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else onednn._is_mkldnn_fp16_supported())


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is on for the device of this tensor, as in training."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether weights can be packed for this device and dtype."""
    return device.type == "cpu" and onednn_computes(dtype)


class Kernels:
    """The weights and settings of a convolution, as oneDNN takes them.

    weight: [out, in, height, width]. transposed: for the gradient, [in, out, height, width]; None if they are
    transposed at each call. Packed kernels have a number, by which compiled code finds them. Weights and settings are
    here and not in the module, because Python takes as long to look up a module's attributes as the rest of a call.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: Pair, stride: Pair, transposed: Tensor | None = None
    ) -> None:
        self.weight, self.bias, self.padding, self.stride, self.transposed = weight, bias, padding, stride, transposed
        self.dtype, self.size = weight.dtype, tuple(weight.shape)
        self.number = opaque.number_of(self) if weight.is_mkldnn else None

    def packed(self, rows: int, size: Pair, *, with_gradient: bool) -> "Kernels":
        """Pack them for maps of this size, once instead of at every call."""
        outputs, inputs, length, _ = self.size
        transposed = None
        if with_gradient:
            ahead = length - 1 - self.padding[0]
            gradient_size = (rows, outputs, *(each + 2 * self.padding[0] - length + 1 for each in size))
            transposed = _packed(transpose(self.weight), (ahead, ahead), (1, 1), gradient_size)
        weight = _packed(self.weight, self.padding, self.stride, (rows, inputs, *size))
        return Kernels(nn.Parameter(weight, requires_grad=False), self.bias, self.padding, self.stride, transposed)

    def convolve(self, maps: Tensor) -> Tensor:
        """Convolve maps [N, C, H, W]."""
        return _convolve(maps, self.weight, self.bias, self.padding, self.stride)

    def image_gradient(self, gradient: Tensor, size: Pair) -> Tensor:
        """The gradient with respect to maps [N, C, *size], from the gradient with respect to the result."""
        (*_, length), (padding, _), (stride, _) = self.size, self.padding, self.stride
        if stride > 1:
            gradient = _spread(gradient, stride, [each + 2 * padding - length + 1 for each in size])
        transposed = transpose(self.weight) if self.transposed is None else self.transposed
        return _convolve(gradient, transposed, None, (length - 1 - padding,) * 2)

    def size_of_result(self, size: torch.Size) -> tuple[int, ...]:
        """The size of the result for maps of this size, [N, C, H, W]."""
        lengths = ((size[2 + i] + 2 * self.padding[i] - self.size[2 + i]) // self.stride[i] + 1 for i in (0, 1))
        return (size[0], self.size[0], *lengths)


class _Served(nn.Module):
    """A convolution of maps, or of lines as maps of height 1, without dilation and groups.

    Packed weights get no gradient; the gradient with respect to the image uses transposed kernels.
    """

    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, ...] | str
    stride: tuple[int, ...]
    packed: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        kernels, compiles = self.packed, torch.compiler.is_compiling()
        if kernels is None:
            x = x if autocasts(x) else x.to(self.weight.dtype)
            if compiles or not self._is_served(x):
                by_torch: Tensor = super().forward(x)
                return by_torch
            kernels = self._kernels()
        x = x.to(kernels.dtype)
        maps = x if x.ndim == 4 else x.unsqueeze(2)
        convolved: Tensor
        if compiles:
            convolved = opaque.convolve(maps, kernels.number)
        elif torch.is_grad_enabled() and x.requires_grad:
            convolved = _Convolution.apply(maps, kernels)  # type: ignore[no-untyped-call]  # torch's
        else:
            convolved = kernels.convolve(maps)
        return convolved if x.ndim == 4 else convolved.squeeze(2)

    def pack(self, rows: int, size: Pair, *, with_gradient: bool) -> None:
        """Pack the weights for their kernels, for maps of this size."""
        self.packed = self._kernels().packed(rows, size, with_gradient=with_gradient)
        self.weight = cast(nn.Parameter, self.packed.weight)

    def _is_served(self, x: Tensor) -> bool:
        """Return whether oneDNN computes this here: on a CPU, outside of training and its autocast."""
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        plain = x.is_cpu and not trains and not autocasts(x)
        return plain and onednn_computes(self.weight.dtype)

    def _kernels(self) -> Kernels:
        """The weights as they are, not packed."""
        weight = self.weight if self.weight.ndim == 4 else self.weight.unsqueeze(2)
        return Kernels(weight, self.bias, _pair(self.padding), _pair(self.stride))


class _Convolution(torch.autograd.Function):
    """A convolution with a gradient for the image only, computed as a convolution of stride 1."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Kernels) -> Tensor:
        ctx.kernels, ctx.size = kernels, maps.shape[2:]
        return kernels.convolve(maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.kernels.image_gradient(gradient, ctx.size), None


class Conv2d(_Served, nn.Conv2d):
    """nn.Conv2d whose results and gradients for an image do not depend on the batch size.

    Dilation, groups and padding other than zeros are not supported by the kernels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)


class Conv1d(_Served, nn.Conv1d):
    """nn.Conv1d of kernel size 1 whose results for a row do not depend on the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None or not torch.compiler.is_compiling():
            return super().forward(x)
        # on one thread torch would compute a matrix product per image, whose kernel depends on the result's address
        length = x.shape[-1]
        return super().forward(F.pad(x, (0, -length % ALIGNED)))[..., :length]


def _pair(setting: tuple[int, ...] | str) -> Pair:
    """The setting of a square kernel or a line as a pair for maps."""
    return cast(Pair, tuple(setting[-1:]) * 2)


def _convolve(maps: Tensor, kernels: Tensor, bias: Tensor | None, padding: Pair, stride: Pair = (1, 1)) -> Tensor:
    """Convolve maps with kernels; packed kernels return channels-last maps."""
    if kernels.is_mkldnn:
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            maps, kernels, bias, padding, stride, (1, 1), 1, "none", [], ""
        )
        return convolved
    return torch.mkldnn_convolution(maps, kernels, bias, padding, stride, (1, 1), 1)


def transpose(kernels: Tensor) -> Tensor:
    """The kernels of the image's gradient, [in, out, h, w], for kernels [out, in, h, w]: flipped and transposed."""
    return kernels.flip(2, 3).transpose(0, 1).contiguous()


def _spread(gradient: Tensor, stride: int, size: list[int]) -> Tensor:
    """Undo a stride: place values `stride` apart, with zeros between them."""
    spread = gradient.new_zeros(*gradient.shape[:2], *size).contiguous(memory_format=torch.channels_last)
    spread[:, :, ::stride, ::stride] = gradient
    return spread


def _packed(kernels: Tensor, padding: Pair, stride: Pair, size: tuple[int, ...]) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(kernels, padding, stride, (1, 1), 1, size)
    return packed


@torch.no_grad()
def pack_weights(network: nn.Module, rows: int, run: Callable[[], object], *, with_gradient: bool = False) -> None:
    """Pack the weights of all convolutions of a network, for batches of this many rows; other batches use them too.

    Weights are replaced, so the network cannot be trained any more. Weights that are packed already stay as they are.
    run computes the network, which shows the sizes of maps.
    Source: torch's own freezing, torch/_inductor/fx_passes/mkldnn_fusion.py.
    """
    sizes: dict[_Served, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, _Served)
        sizes[module] = tuple(inputs[0].shape[2:])

    plain = [each for each in network.modules() if isinstance(each, _Served) and not each.weight.is_mkldnn]
    hooks = [each.register_forward_pre_hook(note) for each in plain]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for each in plain:
        each.pack(rows, cast(Pair, (1, *sizes[each])[-2:]), with_gradient=with_gradient)
