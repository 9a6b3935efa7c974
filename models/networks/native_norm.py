"""`channel_norm.group_norm` as compiled code, where the installation had a C compiler: _channel_norm.c says the rest.

A guided step calls some seventy norms. As torch's operations each is a dozen, whose launching takes a small network
longer than their arithmetic; and they read and write the map about ten times, where this reads it three times.
"""

import ctypes
import functools
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """The compiled code; None where it was not built."""
    stem = Path(__file__).with_name("_channel_norm")
    built = [path for suffix in EXTENSION_SUFFIXES if (path := stem.with_suffix(suffix)).exists()]
    return loaded(built[0]) if built else None


def loaded(path: Path) -> ctypes.CDLL:
    """A library that was built of _channel_norm.c."""
    found = ctypes.CDLL(str(path))
    found.adm_norm.argtypes = [POINTER(Norm), *[c_void_p] * 4]
    found.adm_norm_gradient.argtypes = [POINTER(Norm), *[c_void_p] * 5]
    found.adm_norm.restype = found.adm_norm_gradient.restype = c_int
    return found


def is_of(dtype: torch.dtype) -> bool:
    """Whether this computes a CPU's maps of such a type."""
    return dtype in HALF and library() is not None


def computes(x: Tensor) -> bool:
    """Whether this computes a map that lies by channels. Its calls run on the thread that makes them alone."""
    return is_of(x.dtype) and x.shape[1] % CHANNELS_TOGETHER == 0 and torch.get_num_threads() == 1


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """As `channel_norm.group_norm`, of a map that this `computes`. The gradient goes to x alone."""
    moves = [] if scale is None or shift is None else [_rows(scale), _rows(shift)]
    call = _Call(groups, weight.contiguous(), bias.contiguous(), eps, silu, *moves)
    pixels = x.flatten(2).mT
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _GroupNorm.apply(pixels, call)  # type: ignore[no-untyped-call]  # torch's
    else:
        y, _, _ = call.forward(pixels)
    return y.mT.reshape(x.shape)


def _rows(move: Tensor) -> Tensor:
    """A scale or shift as [N, C], its channels side by side."""
    rows = move.flatten(1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


class _Call:
    """One norm of one batch; holds the tensors that its pointers point to."""

    def __init__(
        self,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        silu: bool,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        self._tensors = weight, bias, scale, shift
        self._half_moves = 0 if scale is None else HALF[scale.dtype]
        self._pointers = tuple(None if each is None else each.data_ptr() for each in self._tensors)
        self._strides = tuple(0 if each is None else each.stride(0) for each in (scale, shift))
        self._groups, self._eps, self._silu = groups, eps, silu

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of [N, P, C]: the result, and the mean and one over the deviation of each image and channel, [N, C]."""
        y = torch.empty_like(pixels, memory_format=torch.contiguous_format)
        means, rstds = torch.empty((2, len(pixels), pixels.shape[2]), dtype=torch.float32)
        self._run("adm_norm", pixels, pixels, y, means, rstds)
        return y, means, rstds

    def gradient(self, pixels: Tensor, dy: Tensor, means: Tensor, rstds: Tensor) -> Tensor:
        dy = dy.contiguous()
        dx = torch.empty_like(dy)
        self._run("adm_norm_gradient", pixels, pixels, dy, means, rstds, dx)
        return dx

    def _run(self, name: str, pixels: Tensor, *maps: Tensor) -> None:
        count, positions, channels = pixels.shape
        norm = Norm(
            count,
            positions,
            channels,
            self._groups,
            HALF[pixels.dtype],
            self._half_moves,
            self._silu,
            self._eps,
            *self._pointers,
            *self._strides,
        )
        if getattr(library(), name)(ctypes.byref(norm), *(each.data_ptr() for each in maps)):
            raise MemoryError("no memory for a group norm's sums")


class _GroupNorm(torch.autograd.Function):
    """Of [N, P, C]; the gain and the bias take no gradient."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, call: _Call) -> Tensor:
        y, means, rstds = call.forward(pixels)
        ctx.save_for_backward(pixels, means, rstds)
        ctx.call = call
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        pixels, means, rstds = ctx.saved_tensors
        return ctx.call.gradient(pixels, dy, means, rstds), None
