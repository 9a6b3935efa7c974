"""Group norm in float32 and the zero initialisation, shared by every block of the ADM networks.

Source: guided-diffusion (MIT), nn.py.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import channel_norm, native_norm
from models.networks.channel_norm import NormCall

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups, eps 1e-5, affine, computed in float32 and cast back to the input's dtype.

    The result can be modulated, to norm(x) * (1 + scale) + shift, and passed through a SiLU. If fused is set
    (models.networks.fusing), all of it is one kernel, unless the norm's own weights require a gradient.
    """

    fused = False

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        """Shapes: x [N, C, ...]; scale and shift [N, C, 1, ...], both or none; the result is like x."""
        call = NormCall(self.num_groups, self.weight, self.bias, self.eps, scale, shift, silu)
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        modulation_trains = torch.is_grad_enabled() and scale is not None and scale.requires_grad
        if torch.compiler.is_compiling():  # the compiled norm is a single operation there, with a gradient for x alone
            if trains or modulation_trains or not channel_norm.is_channels_last(x) or not native_norm.serves(x.dtype):
                return self._eager(x, scale, shift, silu=silu)
            return native_norm.group_norm(x, call)
        if self.fused and not trains:
            from models.networks.norm_kernels import group_norm  # imported here, because it needs Triton

            return group_norm(x, call)
        trains = trains or modulation_trains
        if channel_norm.is_channels_last(x):
            if native_norm.computes(x, trains=trains):
                return native_norm.group_norm(x, call)
            if not trains:
                return channel_norm.group_norm(x, call)
        return self._eager(x, scale, shift, silu=silu)

    def _eager(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *, silu: bool) -> Tensor:
        h = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
        if scale is not None and shift is not None:
            h = h * (1 + scale) + shift
        return F.silu(h) if silu else h


def zero_parameters(module: ModuleT) -> ModuleT:
    """Zero a layer's parameters, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
