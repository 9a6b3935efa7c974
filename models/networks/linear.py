"""A linear layer that is one product of the same size for every number of rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.convolution import autocasts

FIXED_ROWS = 32


class Linear(nn.Linear):
    """nn.Linear that, when it does not train, computes rows in float32 and FIXED_ROWS at a time.

    A matrix product's kernel is chosen by its number of rows, and kernels round differently. Padded rows cost next to
    nothing: these layers embed timesteps, or end a classifier. float32 is the official arithmetic of them as well
    (guided-diffusion, convert_to_fp16 leaves them out), and on CPUs the faster one at this size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training or autocasts(x):
            return super().forward(x)
        x, rows = x.float(), len(x)
        blocks = F.pad(x, (0, 0, 0, -rows % FIXED_ROWS)).split(FIXED_ROWS)
        products = [super(Linear, self).forward(block) for block in blocks]
        return torch.cat(products)[:rows] if len(products) > 1 else products[0][:rows]
