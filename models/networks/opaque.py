"""Packed convolutions as single operations for torch.compile, which calls them and does not look into them.

So compiled networks use the kernels of eager ones, for which docs/decisions/0014 shows that a row does not depend on
its neighbours. torch.compile takes no packed weights as inputs, so an operation finds its layer by a number.
"""

import itertools
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Size, Tensor


class Layer(Protocol):
    """A packed convolution."""

    def convolve(self, maps: Tensor) -> Tensor:
        """Convolve maps [N, C, H, W]; the result is channels-last."""

    def image_gradient(self, gradient: Tensor, size: tuple[int, int]) -> Tensor:
        """The gradient with respect to maps [N, C, *size]; channels-last."""

    def size_of_result(self, size: Size) -> tuple[int, ...]:
        """The size of the result for maps of this size."""


_LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()


def number_of(layer: Layer) -> int:
    """Number a layer, for as long as it exists, by the smallest free number.

    Numbers are in the traced graph, which each start traces again, and not in the C++ that takes long to compile. So a
    start with other numbers finds that code too.
    """
    number = next(each for each in itertools.count() if each not in _LAYERS)
    _LAYERS[number] = layer
    return number


def _convolve(maps: Tensor, number: int) -> Tensor:
    """Convolve maps [N, C, H, W] by the layer with this number; the maps get a gradient."""
    return _LAYERS[number].convolve(maps)


def _image_gradient(gradient: Tensor, number: int, size: list[int]) -> Tensor:
    """The gradient with respect to the maps, of this size."""
    return _LAYERS[number].image_gradient(gradient, (size[2], size[3]))


def _size_of_convolved(maps: Tensor, number: int) -> Tensor:
    return _channels_last(maps, _LAYERS[number].size_of_result(maps.shape))


def _size_of_gradient(gradient: Tensor, number: int, size: list[int]) -> Tensor:
    return _channels_last(gradient, tuple(size))


def _channels_last(like: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _note(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    maps, ctx.number = inputs
    ctx.size = list(maps.shape)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return image_gradient(gradient, ctx.number, ctx.size), None


# not torch.library.custom_op, whose checks take longer at each call than a small convolution's arithmetic
torch.library.define("adm::convolve", "(Tensor maps, int number) -> Tensor")
torch.library.define("adm::image_gradient", "(Tensor gradient, int number, int[] size) -> Tensor")
torch.library.impl("adm::convolve", "CPU", _convolve)
torch.library.impl("adm::image_gradient", "CPU", _image_gradient)
torch.library.register_fake("adm::convolve", _size_of_convolved)
torch.library.register_fake("adm::image_gradient", _size_of_gradient)
torch.library.register_autograd("adm::convolve", _backward, setup_context=_note)
convolve, image_gradient = torch.ops.adm.convolve.default, torch.ops.adm.image_gradient.default
