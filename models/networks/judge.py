"""The judge: a small classifier of clean images, which measures generated images and is not used in sampling."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.linear import Linear
from models.networks.norm import GroupNorm32


@dataclass(frozen=True)
class JudgeConfig:
    """Widths of the stages, each of which halves the map; features are the last width."""

    image_size: int
    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128, 128)


class JudgeStage(nn.Module):
    """Two convolutions with norm and SiLU, a skip path, then a 2x2 mean."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm1 = GroupNorm32(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm32(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.avg_pool2d(F.silu(self.norm2(self.conv2(h)) + self.skip(x)), 2)


class Judge(nn.Module):
    """Logits of clean images, and the pooled features for FID."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, *config.widths)
        self.stages = nn.Sequential(*(JudgeStage(a, b) for a, b in pairwise(widths)))
        self.head = Linear(widths[-1], config.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Shapes: x [N, 3, image_size, image_size] in [-1, 1]; result [N, widths[-1]]."""
        pooled: Tensor = self.stages(x).mean(dim=(2, 3))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        logits: Tensor = self.head(self.features(x))
        return logits
