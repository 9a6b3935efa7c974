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

from models.networks.channel_norm import NormCall, is_channels_last

HALF = {torch.float32: 0, torch.bfloat16: 1}
CHANNELS_TOGETHER = 32
VERSION = 2  # of the functions' arguments; raise it here and in _channel_norm.c when they change


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
def library_path() -> Path | None:
    """The compiled code with the widest vectors that torch uses on this processor; None if it was not built."""
    names = ["_channel_norm_avx512"] if torch.backends.cpu.get_cpu_capability() == "AVX512" else []
    paths = (
        Path(__file__).with_name(f"{name}{suffix}")
        for name in (*names, "_channel_norm")
        for suffix in EXTENSION_SUFFIXES
    )
    return next((path for path in paths if path.exists()), None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code, loaded; None if it was not built."""
    path = library_path()
    return None if path is None else loaded(path)


def loaded(path: Path) -> ctypes.CDLL:
    """Load a library built from _channel_norm.c. Raises: ImportError if it was built from another version of it."""
    found = ctypes.CDLL(str(path))
    try:
        version = c_int.in_dll(found, "adm_norm_version").value
    except ValueError:  # the first version had none
        version = 1
    if version != VERSION:
        raise ImportError(f"{path} was built from another version of its source; run make install")
    found.adm_norm.argtypes = [POINTER(Norm), *[c_void_p] * 3]
    found.adm_norm_gradient.argtypes = [POINTER(Norm), *[c_void_p] * 5]
    found.adm_norm.restype = found.adm_norm_gradient.restype = c_int
    return found


def supports(dtype: torch.dtype) -> bool:
    """Return whether this code supports the dtype on a CPU."""
    return dtype in HALF and library() is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's; torch.compile cannot look inside
def serves(dtype: torch.dtype) -> bool:
    """Return whether serving uses this code for the dtype on the calling thread, which must compute alone."""
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
    y: Tensor
    if torch.compiler.is_compiling():
        y, _ = opaque_norm(x, weight, bias, scale, shift, *settings)
        return y
    inputs = x, weight, bias, scale, shift
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs):
        y = _GroupNorm.apply(x, weight, bias, scale, shift, settings)  # type: ignore[no-untyped-call]  # torch's
        return y
    return _norm(x, weight, bias, scale, shift, *settings)[0]


class _Call:
    """One norm of channels-last maps [N, C, ...], as the compiled code takes it.

    It keeps the tensors behind its pointers alive. scale and shift: [N, C, 1, ...], both or none.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> None:
        assert is_channels_last(x)  # the code gets an address
        if scale is not None and shift is not None:
            scale, shift = _by_channels(scale), _by_channels(shift)
        self._x, self._weight, self._bias = x, weight.float().contiguous(), bias.float().contiguous()
        self._scale, self._shift = scale, shift
        count, channels = x.shape[:2]
        self._norm = Norm(
            count,
            x.shape[2:].numel(),
            channels,
            groups,
            HALF[x.dtype],
            0 if scale is None else HALF[scale.dtype],
            silu,
            eps,
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            *(None if each is None else each.data_ptr() for each in (scale, shift)),
            *(0 if each is None else each.stride(0) for each in (scale, shift)),
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """The norm, and its moments: the mean and one over the deviation for each image and channel, [N, 2, C]."""
        count, channels = self._x.shape[:2]
        y, moments = torch.empty_like(self._x), torch.empty((count, 2, channels), dtype=torch.float32)
        self._run("adm_norm", y, moments)
        return y, moments

    def gradient(self, dy: Tensor, moments: Tensor, *, trains: bool) -> tuple[Tensor, Tensor | None]:
        """The gradient with respect to x; if trains, also the sums over positions of d and of d * n, [N, 2, C].

        d is dy * silu', the gradient with respect to the argument of silu; n are the normalised values.
        """
        dx = torch.empty_like(self._x)
        sums = torch.empty_like(moments) if trains else None
        self._run("adm_norm_gradient", _like(self._x, dy), moments, dx, sums)
        return dx, sums

    def _run(self, name: str, *maps: Tensor | None) -> None:
        """Call the code for all images: at once, or where torch has several threads, for a part of them on each."""
        count, threads = len(self._x), torch.get_num_threads()
        if threads == 1 or count == 1:
            self._call(name, self._norm, [None if each is None else each.data_ptr() for each in (self._x, *maps)])
            return
        size = -(-count // threads)
        starts = range(0, count, size)
        list(_threads(threads).map(lambda at: self._part(name, maps, at, min(at + size, count)), starts))

    def _part(self, name: str, maps: Sequence[Tensor | None], first: int, end: int) -> None:
        """Call the code for some of the images."""
        norm = Norm.from_buffer_copy(self._norm)
        norm.n = end - first
        norm.scale, norm.shift = (_row(each, first) for each in (self._scale, self._shift))
        self._call(name, norm, [_row(each, first) for each in (self._x, *maps)])

    def _call(self, name: str, norm: Norm, addresses: Sequence[int | None]) -> None:
        if getattr(library(), name)(ctypes.byref(norm), *addresses):
            raise MemoryError("no memory for a group norm's sums")


def _by_channels(move: Tensor) -> Tensor:
    """A scale or shift [N, C, 1, ...] with contiguous channels."""
    return move if move.stride(1) == 1 else move.contiguous()


def _like(x: Tensor, dy: Tensor) -> Tensor:
    """A gradient in the memory layout of x, which is channels-last."""
    return dy if is_channels_last(dy) else torch.empty_like(x).copy_(dy)


def _row(rows: Tensor | None, number: int) -> int | None:
    """The address of a row of [N, ...]; it is computed, because slicing the tensors takes as long as a small norm."""
    return None if rows is None else rows.data_ptr() + number * rows.stride(0) * rows.element_size()


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "norm")


def _norm(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The norm of x and its moments; others: the other arguments of `_Call`."""
    return _Call(x, *others).forward()


def _norm_gradient(x: Tensor, dy: Tensor, moments: Tensor, *others: Any) -> Tensor:
    """The gradient with respect to x, from the gradient dy with respect to the norm, and the norm's moments."""
    dx, _ = _Call(x, *others).gradient(dy, moments, trains=False)
    return dx


class _GroupNorm(torch.autograd.Function):
    """Group norm of maps [N, C, ...], with a scale and a shift [N, C, 1, ...] or none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        settings: tuple[int, float, bool],
    ) -> Tensor:
        ctx.settings = settings
        y, moments = _norm(x, weight, bias, scale, shift, *settings)
        ctx.save_for_backward(x, moments, weight, bias, scale, shift)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of y = silu((n * weight + bias) * (1 + scale) + shift), by the sums of `_Call.gradient`."""
        x, moments, weight, bias, scale, shift = ctx.saved_tensors
        trains = any(ctx.needs_input_grad[1:5])
        dx, sums = _Call(x, weight, bias, scale, shift, *ctx.settings).gradient(dy, moments, trains=trains)
        if sums is None:
            return dx, *[None] * 5
        slopes, products = sums.unbind(1)
        gain = 1.0 if scale is None else 1 + scale.float().flatten(1)
        by_weight, by_bias = ((gain * each).sum(0).to(weight.dtype) for each in (products, slopes))
        if scale is None:
            return dx, by_weight, by_bias, None, None, None
        by_scale = (products * weight.float() + slopes * bias.float()).to(scale.dtype)
        return dx, by_weight, by_bias, by_scale.view_as(scale), slopes.to(shift.dtype).view_as(shift), None


def _sizes(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((x.shape[0], 2, x.shape[1]), dtype=torch.float32)


def _note(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, scale, shift, *ctx.settings = inputs
    ctx.save_for_backward(x, output[1], weight, bias, scale, shift)


def _backward(ctx: Any, dy: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    x, *saved = ctx.saved_tensors
    return opaque_gradient(x, dy, *saved, *ctx.settings), *[None] * 7


# The norm as a single operation for torch.compile, with a gradient for x, defined as in models/networks/opaque.py. It
# takes maps and not their pixels, because torch.compile chooses the memory layout of an operation's inputs.
_SETTINGS = "Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int groups, float eps, bool silu"
torch.library.define("adm::group_norm", f"(Tensor x, {_SETTINGS}) -> (Tensor, Tensor)")
torch.library.define("adm::group_norm_gradient", f"(Tensor x, Tensor dy, Tensor moments, {_SETTINGS}) -> Tensor")
torch.library.impl("adm::group_norm", "CPU", _norm)
torch.library.impl("adm::group_norm_gradient", "CPU", _norm_gradient)
torch.library.register_fake("adm::group_norm", _sizes)
torch.library.register_fake("adm::group_norm_gradient", lambda x, *others: torch.empty_like(x))
torch.library.register_autograd("adm::group_norm", _backward, setup_context=_note)
opaque_norm, opaque_gradient = torch.ops.adm.group_norm.default, torch.ops.adm.group_norm_gradient.default
