"""The Inception v3 of FID: the network of the file that pytorch-fid and torch-fidelity use.

It is TensorFlow's graph of 2015, whose poolings differ from torchvision's: means exclude the padding, and the last
block uses maximum pooling. Keys are those of `pt_inception-2015-12-05`, so a checkpoint loads unchanged: the
layers have the names that pytorch-fid and torch-fidelity (both Apache 2.0) give them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoints.file_form import shown
from models.checkpoints.network_file import check_state
from models.checkpoints.tensor_file import read_tensors
from models.networks.linear import Linear
from models.networks.tf_resize import resized_as_tensorflow

FEATURES, CLASSES = 2048, 1008
SPATIAL_CHANNELS, SPATIAL_PLACES = 7, 17 * 17  # of mixed_6/conv, as in the official evaluator's sFID
INPUT_SIZE = 299
COUNTER = ".num_batches_tracked"  # used only in training; some files contain it
TINY = 1e-3  # epsilon of the graph's batch normalisation

Kernel = int | tuple[int, int]


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation by stored moments, ReLU."""

    def __init__(self, channels: int, width: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=TINY)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x))
        return F.relu(normed)


def row(channels: int, width: int, length: int) -> ConvNorm:
    """A convolution along rows."""
    return ConvNorm(channels, width, (1, length), padding=(0, length // 2))


def column(channels: int, width: int, length: int) -> ConvNorm:
    """A convolution along columns."""
    return ConvNorm(channels, width, (length, 1), padding=(length // 2, 0))


def mean_pool(x: Tensor) -> Tensor:
    """3x3 means without the padding."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Mixed35(nn.Module):
    """A block at 35x35 positions with four branches: 1x1, 5x5, two 3x3 in sequence, and pooling."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 64, 1)
        self.branch5x5_1 = ConvNorm(channels, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNorm(channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))], dim=1)


class Reduce35(nn.Module):
    """Reduces 35x35 to 17x17 positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed17(nn.Module):
    """A block at 17x17 positions with four branches: 1x1, one 7x7, two 7x7 in sequence, and pooling.

    Each 7x7 is a 1x7 and a 7x1 convolution. inner: channels within these branches.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 192, 1)
        self.branch7x7_1 = ConvNorm(channels, inner, 1)
        self.branch7x7_2 = row(inner, inner, 7)
        self.branch7x7_3 = column(inner, 192, 7)
        self.branch7x7dbl_1 = ConvNorm(channels, inner, 1)
        self.branch7x7dbl_2 = column(inner, inner, 7)
        self.branch7x7dbl_3 = row(inner, inner, 7)
        self.branch7x7dbl_4 = column(inner, inner, 7)
        self.branch7x7dbl_5 = row(inner, 192, 7)
        self.branch_pool = ConvNorm(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))], dim=1)


class Reduce17(nn.Module):
    """Reduces 17x17 to 8x8 positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(channels, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(channels, 192, 1)
        self.branch7x7x3_2 = row(192, 192, 7)
        self.branch7x7x3_3 = column(192, 192, 7)
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed8(nn.Module):
    """A block at 8x8 positions whose 3x3 branches end in a 1x3 and a 3x1 convolution in parallel."""

    def __init__(self, channels: int, *, pools_maximum: bool) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 320, 1)
        self.branch3x3_1 = ConvNorm(channels, 384, 1)
        self.branch3x3_2a = row(384, 384, 3)
        self.branch3x3_2b = column(384, 384, 3)
        self.branch3x3dbl_1 = ConvNorm(channels, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = row(384, 384, 3)
        self.branch3x3dbl_3b = column(384, 384, 3)
        self.branch_pool = ConvNorm(channels, 192, 1)
        self._pools_maximum = pools_maximum

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._pools_maximum else mean_pool(x)
        branches = [
            self.branch1x1(x),
            *(self.branch3x3_2a(three), self.branch3x3_2b(three)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


class Inception(nn.Module):
    """Computes pooled and spatial features; `fc` is the last layer, whose weight gives the class logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = Mixed35(192, 32)
        self.Mixed_5c = Mixed35(256, 64)
        self.Mixed_5d = Mixed35(288, 64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b = Mixed17(768, 128)
        self.Mixed_6c = Mixed17(768, 160)
        self.Mixed_6d = Mixed17(768, 160)
        self.Mixed_6e = Mixed17(768, 192)
        self.Mixed_7a = Reduce17(768)
        self.Mixed_7b = Mixed8(1280, pools_maximum=False)
        self.Mixed_7c = Mixed8(2048, pools_maximum=True)
        self.fc = Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: x [N, 3, 299, 299] in [-1, 1); pooled [N, 2048] and spatial [N, 17 * 17 * 7], by position."""
        x = self._run(x, (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3))
        x = self._run(F.max_pool2d(x, 3, stride=2), (self.Conv2d_3b_1x1, self.Conv2d_4a_3x3))
        x = self._run(F.max_pool2d(x, 3, stride=2), (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d))
        x = self._run(x, (self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # mixed_6/conv is the block's first branch
        x = self._run(x, (self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c))
        return x.mean(dim=(2, 3)), spatial

    @staticmethod
    def _run(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x


def load_inception(path: Path) -> Inception:
    """The network of a weights file. Raises: WeightsError for another file, with the first keys that differ."""
    tensors = {key: value for key, value in read_tensors(path).items() if not key.endswith(COUNTER)}
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    check_state(network, tensors, shown(path))
    network.load_state_dict(tensors, strict=False)  # not strict: checked before, and batch norms' counters were removed
    return network.eval().requires_grad_(False)


def resized(pixels: Tensor) -> Tensor:
    """Images [N, 3, H, W], uint8, as the graph's input: [N, 3, 299, 299], (x - 128) / 128."""
    return (resized_as_tensorflow(pixels.float(), INPUT_SIZE) - 128) / 128
