"""Group norm in float32 and the zero initialisation, shared by every block of the ADM networks."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups, eps 1e-5, affine, computed in float32 and cast back to the input's dtype.

    A caller may have it modulated, to norm(x) * (1 + scale) + shift, and passed through a SiLU. Where fused is set
    (models.fusing) all of it is one kernel, as long as the norm's own weights take no gradient.
    """

    fused = False

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        """Shapes: x [N, C, ...]; scale and shift [N, C, 1, ...], both or none; the result as x."""
        if self.fused and not (torch.is_grad_enabled() and self.weight.requires_grad):
            from models.norm_kernels import group_norm  # here: it takes Triton

            return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, silu=silu)
        if _lies_by_channels(x):
            return self._by_channels(x.float(), scale, shift, silu=silu).to(x.dtype)
        h = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
        if scale is not None and shift is not None:
            h = h * (1 + scale) + shift
        return F.silu(h) if silu else h

    def _by_channels(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *, silu: bool) -> Tensor:
        """The same of a map that lies by channels, with the modulation folded into gain and bias.

        torch's own kernel would share one image out to several threads where their number does not divide the batch's,
        and add up in another order: only batches of so many images would agree. This one is faster too.
        """
        pixels = x.flatten(2).mT  # [N, positions, C]
        sums = torch.stack([pixels.sum(1), pixels.square().sum(1)])
        means = sums.unflatten(2, (self.num_groups, -1)).sum(-1, keepdim=True) / (x[0].numel() / self.num_groups)
        mean, rstd = means[0], (means[1] - means[0].square()).clamp(min=0).add(self.eps).rsqrt()
        weight, bias = (each.float().unflatten(0, (self.num_groups, -1)) for each in (self.weight, self.bias))
        gain = rstd * weight
        gain, offset = gain.flatten(1), (bias - mean * gain).flatten(1)  # [N, C]
        if scale is not None and shift is not None:
            factor = 1 + scale.flatten(1)
            gain, offset = gain * factor, offset * factor + shift.flatten(1)
        h = torch.addcmul(offset[:, None], pixels, gain[:, None])
        return (F.silu(h, inplace=True) if silu else h).mT.reshape(x.shape)


def _lies_by_channels(x: Tensor) -> bool:
    """Whether a CPU's map has each position's channels side by side, and neither trains nor is compiled."""
    return (
        x.is_cpu
        and x.ndim > 2
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and x.requires_grad)
        and x.flatten(2).mT.is_contiguous()
    )


def zero_parameters(module: ModuleT) -> ModuleT:
    """Zero a layer's parameters, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
