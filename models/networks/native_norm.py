"""`channel_norm.group_norm` as compiled code, if the installation had a C compiler; see _channel_norm.c.

A guided step calls about seventy norms. With torch each is a dozen operations, whose launch takes longer than their
arithmetic in a small network, and which read and write the map about ten times; this code reads it three times.
Training uses it too: then weight, bias, scale and shift get gradients.
"""

import ctypes
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.networks.channel_norm import NormCall

HALF = {torch.float32: 0, torch.bfloat16: 1}
CHANNELS_TOGETHER = 32


class Norm(ctypes.Structure):
    """The structure of this name in _channel_norm.c."""

    _fields_ = (
        *((name, c_int64) for name in ("n", "p", "c", "groups")),
        *((name, c_int32) for name in ("half", "half_moves", "silu")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("weight", "bias", "scale", "shift")),
        *((name, c_int64) for name in ("scale_stride", "shift_stride")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code, with the widest vectors that torch uses on this processor; None if it was not built."""
    names = ["_channel_norm_avx512"] if torch.backends.cpu.get_cpu_capability() == "AVX512" else []
    paths = (
        Path(__file__).with_name(f"{name}{suffix}")
        for name in (*names, "_channel_norm")
        for suffix in EXTENSION_SUFFIXES
    )
    built = next((path for path in paths if path.exists()), None)
    return None if built is None else loaded(built)


def loaded(path: Path) -> ctypes.CDLL:
    """Load a library built from _channel_norm.c."""
    found = ctypes.CDLL(str(path))
    found.adm_norm.argtypes = [POINTER(Norm), *[c_void_p] * 4]
    found.adm_norm_gradient.argtypes = [POINTER(Norm), *[c_void_p] * 7]
    found.adm_norm.restype = found.adm_norm_gradient.restype = c_int
    return found


def supports(dtype: torch.dtype) -> bool:
    """Return whether this code supports the dtype on a CPU."""
    return dtype in HALF and library() is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's; torch.compile cannot look inside
def serves(dtype: torch.dtype) -> bool:
    """Return whether serving uses this code for the dtype on the calling thread: where it computes alone."""
    return supports(dtype) and torch.get_num_threads() == 1


def computes(x: Tensor, *, trains: bool = False) -> bool:
    """Return whether this code supports a channels-last map.

    In serving a norm runs on the calling thread alone. In training the images are divided among torch's threads.
    """
    return x.shape[1] % CHANNELS_TOGETHER == 0 and (supports(x.dtype) if trains else serves(x.dtype))


def group_norm(x: Tensor, call: NormCall) -> Tensor:
    """Like `channel_norm.group_norm`, for a map that this code `computes`, with gradients of all inputs."""
    groups, weight, bias, eps, scale, shift, silu = call
    settings = groups, eps, silu
    scale, shift = (None, None) if scale is None or shift is None else (_rows(scale), _rows(shift))
    parameters = weight, bias, scale, shift
    y: Tensor
    if torch.compiler.is_compiling():
        y, *_ = opaque_norm(x, *parameters, *settings)
        return y
    pixels = x.flatten(2).mT
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (pixels, *parameters)):
        y = _GroupNorm.apply(pixels, *parameters, settings)  # type: ignore[no-untyped-call]  # torch's
    else:
        y, *_ = _Prepared(*parameters, *settings).forward(pixels)
    return y.mT.reshape(x.shape)


def _rows(move: Tensor) -> Tensor:
    """A scale or shift as [N, C], contiguous."""
    rows = move.flatten(1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


class _Prepared:
    """One norm of one batch, with a scale and a shift [N, C] or none; keeps the tensors behind its pointers alive."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> None:
        self._weight, self._bias = weight.float().contiguous(), bias.float().contiguous()
        self._moves = scale, shift
        self._groups, self._eps, self._silu = groups, eps, silu

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The norm of [N, P, C], and the mean and one over the deviation for each image and channel, [N, C]."""
        assert pixels.is_contiguous()  # the code gets an address
        y = torch.empty_like(pixels, memory_format=torch.contiguous_format)
        means, rstds = (torch.empty((len(pixels), pixels.shape[2]), dtype=torch.float32) for _ in range(2))
        self._run("adm_norm", pixels, pixels, y, means, rstds)
        return y, means, rstds

    def gradient(
        self, pixels: Tensor, dy: Tensor, means: Tensor, rstds: Tensor, *, trains: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradient by the map; where it trains, the sums over positions of d = dy * silu' and of d * n, [N, C]."""
        assert pixels.is_contiguous()
        dy = dy.contiguous()
        dx = torch.empty_like(dy)
        slopes, products = torch.empty((2, *means.shape), dtype=torch.float32) if trains else (None, None)
        self._run("adm_norm_gradient", pixels, pixels, dy, means, rstds, dx, slopes, products)
        return dx, slopes, products

    def _run(self, name: str, pixels: Tensor, *maps: Tensor | None) -> None:
        """Call the code for all images: at once, or where torch has several threads, for a part of them on each."""
        count, threads = len(pixels), torch.get_num_threads()
        if threads == 1 or count == 1:
            self._call(name, pixels, maps, 0, count)
            return
        size = -(-count // threads)
        starts = range(0, count, size)
        list(_threads(threads).map(lambda at: self._call(name, pixels, maps, at, min(at + size, count)), starts))

    def _call(self, name: str, pixels: Tensor, maps: Sequence[Tensor | None], first: int, end: int) -> None:
        _, positions, channels = pixels.shape
        scale, shift = self._moves
        norm = Norm(
            end - first,
            positions,
            channels,
            self._groups,
            HALF[pixels.dtype],
            0 if scale is None else HALF[scale.dtype],
            self._silu,
            self._eps,
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            *(_row(each, first) for each in (scale, shift)),
            *(0 if each is None else each.stride(0) for each in (scale, shift)),
        )
        if getattr(library(), name)(ctypes.byref(norm), *(_row(each, first) for each in maps)):
            raise MemoryError("no memory for a group norm's sums")


def _row(rows: Tensor | None, number: int) -> int | None:
    """The address of a row of [N, ...]; it is computed, because slicing the tensors takes as long as a small norm."""
    return None if rows is None else rows.data_ptr() + number * rows.stride(0) * rows.element_size()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "norm")


@torch.library.custom_op("adm::group_norm", mutates_args=())
def opaque_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x as a single operation for torch.compile, with a gradient for x; mean and one over the deviation.

    It takes maps and not their pixels, because torch.compile chooses the memory layout of what an operation takes.
    """
    y, means, rstds = _Prepared(weight, bias, scale, shift, groups, eps, silu).forward(x.flatten(2).mT)
    return y.mT.reshape(x.shape), means, rstds


@torch.library.custom_op("adm::group_norm_gradient", mutates_args=())
def opaque_gradient(
    x: Tensor,
    dy: Tensor,
    means: Tensor,
    rstds: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """The gradient for x, from the gradient dy for the result and the statistics that the norm returned."""
    call = _Prepared(weight, bias, scale, shift, groups, eps, silu)
    dx, *_ = call.gradient(x.flatten(2).mT, dy.flatten(2).mT, means, rstds, trains=False)
    return dx.mT.reshape(x.shape)


@opaque_norm.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    means, rstds = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), means, rstds


@opaque_gradient.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def _note(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, scale, shift, *ctx.settings = inputs
    ctx.save_for_backward(x, *output[1:], weight, bias, scale, shift)


def _backward(ctx: Any, dy: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    return opaque_gradient(x, dy, *saved, *ctx.settings), *[None] * 7


opaque_norm.register_autograd(_backward, setup_context=_note)


class _GroupNorm(torch.autograd.Function):
    """Group norm of [N, P, C], with a scale and a shift [N, C] or none."""

    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        settings: tuple[int, float, bool],
    ) -> Tensor:
        call = ctx.call = _Prepared(weight, bias, scale, shift, *settings)
        y, means, rstds = call.forward(pixels)
        ctx.save_for_backward(pixels, means, rstds, weight, bias, scale, shift)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With y = silu((n * weight + bias) * (1 + scale) + shift), d by its inner value and sums over positions."""
        pixels, means, rstds, weight, bias, scale, shift = ctx.saved_tensors
        trains = any(ctx.needs_input_grad[1:5])
        dx, slopes, products = ctx.call.gradient(pixels, dy, means, rstds, trains=trains)
        if slopes is None or products is None:
            return dx, *[None] * 5
        gain = 1.0 if scale is None else 1 + scale.float()
        by_weight, by_bias = ((gain * each).sum(0).to(weight.dtype) for each in (products, slopes))
        if scale is None:
            return dx, by_weight, by_bias, None, None, None
        by_scale = (products * weight.float() + slopes * bias.float()).to(scale.dtype)
        return dx, by_weight, by_bias, by_scale, slopes.to(shift.dtype), None
