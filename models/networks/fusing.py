"""Fuses a network's norms to Triton kernels if these agree with the eager form on this device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.norm import GroupNorm32

TOLERANCE = 0.01  # largest difference, relative to the largest value; rounding to bfloat16 gives at most 0.004


class DisagreementError(Exception):
    """A fused norm does not agree with its eager form."""


def fuse_norms(network: nn.Module, probe: Callable[[], object]) -> str | None:
    """Fuse a network's norms if each agrees with its eager form on its inputs in `probe`, which calls the network.

    Kernels are compiled for the present device, which may be an untested one. If a norm's input requires a gradient,
    the gradients are compared too. Returns None, or one line with the reason why the norms stay eager.
    Raises: torch.AcceleratorError if a kernel makes the device unusable.
    """
    norms = [each for each in network.modules() if isinstance(each, GroupNorm32)]
    hooks = [each.register_forward_pre_hook(_compare, with_kwargs=True) for each in norms]
    try:
        probe()
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 - after any error of Triton, the eager norms are used
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    finally:
        for hook in hooks:
            hook.remove()
    for each in norms:
        each.fused = True
    return None


def fused_by(network: nn.Module) -> str | None:
    """The name of the kernels of a network's norms, if they are not torch's; else None."""
    if not any(isinstance(each, GroupNorm32) and each.fused for each in network.modules()):
        return None
    from models.networks.norm_kernels import VERSION

    return f"Triton {VERSION}"


def _compare(norm: GroupNorm32, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    """Compare a fused norm with its eager form. Raises: DisagreementError."""
    x, *modulation = args
    differentiated = torch.is_grad_enabled() and x.requires_grad
    moves = [each.detach() for each in modulation]
    ours = _run(norm, x, moves, kwargs, differentiated, fused=True)
    theirs = _run(norm, x.float(), [each.float() for each in moves], kwargs, differentiated, fused=False)
    for what, fused, eager in zip(("values", "gradients"), ours, theirs, strict=False):
        apart, most = (fused - eager).abs().max(), eager.abs().max()
        if not bool(apart <= TOLERANCE * most):  # also NaN
            norm_of = f"a norm of {list(x.shape)}, {x.dtype}"
            raise DisagreementError(
                f"{what} of {norm_of}, differ by {float(apart):.2g}; the largest is {float(most):.2g}"
            )


def _run(
    norm: GroupNorm32, x: Tensor, moves: list[Tensor], kwargs: dict[str, Any], differentiated: bool, *, fused: bool
) -> list[Tensor]:
    x = x.detach().requires_grad_(differentiated)
    norm.fused = fused
    try:
        y = norm.forward(x, *moves, **kwargs)
    finally:
        norm.fused = False
    # an upstream gradient that is not constant, because a norm's gradient is zero for a constant one
    return [y.detach(), *(torch.autograd.grad(y, x, x.detach().flip(1)) if differentiated else ())]
