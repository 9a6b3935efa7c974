"""Group norm in float32 and the zero initialisation, shared by every block of the ADM networks."""

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class GroupNorm32(nn.GroupNorm):
    """Group norm of 32 groups, eps 1e-5, affine, computed in float32 and cast back to the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


def zero_parameters(module: ModuleT) -> ModuleT:
    """Zero a layer's parameters, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
