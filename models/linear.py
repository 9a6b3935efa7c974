"""A linear layer whose rows come out the same however few there are."""

import torch.nn.functional as F
from torch import Tensor, nn

FIXED_ROWS = 32


class Linear(nn.Linear):
    """nn.Linear that pads a small batch to FIXED_ROWS when it does not train.

    Matrix products choose their kernel by the number of rows, and one, two and four rows round differently (measured
    on a CPU in float32). The embedding layers were the main reason why an image could tell how many neighbours it had;
    padded, they cost next to nothing, and many more batch sizes agree bit for bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        if self.training or rows >= FIXED_ROWS:
            return super().forward(x)
        return super().forward(F.pad(x, (0, 0, 0, FIXED_ROWS - rows)))[:rows]
