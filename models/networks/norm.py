"""Group norm in float32 and the zero initialisation, shared by every block of the ADM networks."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import channel_norm, native_norm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups, eps 1e-5, affine, computed in float32 and cast back to the input's dtype.

    A caller may have it modulated, to norm(x) * (1 + scale) + shift, and passed through a SiLU. Where fused is set
    (models.networks.fusing) all of it is one kernel, as long as the norm's own weights take no gradient.
    """

    fused = False

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        """Shapes: x [N, C, ...]; scale and shift [N, C, 1, ...], both or none; the result as x."""
        if torch.compiler.is_compiling():
            return self._eager(x, scale, shift, silu=silu)
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        if self.fused and not trains:
            from models.networks.norm_kernels import group_norm  # here: it takes Triton

            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, silu=silu)
        modulation_trains = torch.is_grad_enabled() and scale is not None and scale.requires_grad
        if not trains and not modulation_trains and channel_norm.lies_by_channels(x):
            affine = (self.num_groups, self.weight.float(), self.bias.float(), self.eps)
            group_norm = native_norm.group_norm if native_norm.computes(x) else channel_norm.group_norm
            return group_norm(x, *affine, scale, shift, silu=silu)
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
