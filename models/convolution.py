"""Convolutions that choose no kernel by the number of images.

For a batch of one small image, and on one thread for 1x1 kernels below 16 images, torch leaves oneDNN for an older
kernel, which rounds differently and is slower: without these a lone image would have to be computed at two rows to come
out as among others (measured on a CPU in float32). Training and gradients are torch's own.
"""

from typing import cast

import torch
from torch import Tensor, nn


def _chooses_by_rows(x: Tensor) -> bool:
    plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class Conv2d(nn.Conv2d):
    """nn.Conv2d whose images come out the same however few there are; zero padding alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not _chooses_by_rows(x) or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class Conv1d(nn.Conv1d):
    """nn.Conv1d of kernel size 1 whose rows come out the same however few there are."""

    def forward(self, x: Tensor) -> Tensor:
        if not _chooses_by_rows(x) or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        weight = self.weight.unsqueeze(2)
        return torch.mkldnn_convolution(x.unsqueeze(2), weight, self.bias, (0, 0), (1, 1), (1, 1), 1).squeeze(2)
