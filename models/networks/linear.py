"""A linear layer whose matrix product has the same size for every batch size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.convolution import autocasts

FIXED_ROWS = 32


class Linear(nn.Linear):
    """nn.Linear that outside training computes rows in float32, FIXED_ROWS at a time.

    The kernel of a matrix product depends on its number of rows, and kernels round differently. Padded rows cost almost
    nothing, because these layers embed timesteps or end a classifier. The official code computes them in float32 too
    (guided-diffusion's convert_to_fp16 skips them), which on CPUs is also faster at this size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training or autocasts(x):
            return super().forward(x)
        x, rows = x.float(), len(x)
        blocks = F.pad(x, (0, 0, 0, -rows % FIXED_ROWS)).split(FIXED_ROWS)
        products = [super(Linear, self).forward(block) for block in blocks]
        return torch.cat(products)[:rows] if len(products) > 1 else products[0][:rows]
