"""The noisy classifier p(y | x_t): the UNet's encoder half under one of four pools (ADM, section 4).

Source: guided-diffusion (MIT), unet.py, EncoderUNetModel.
"""

import torch
from torch import Tensor, nn

from models.networks.attention import AttentionPool
from models.networks.config import ClassifierConfig
from models.networks.convolution import Conv2d
from models.networks.encoder import Encoder
from models.networks.linear import Linear
from models.networks.norm import GroupNorm32, zero_parameters

SPATIAL_HIDDEN = 2048


class NoisyClassifier(Encoder):
    """Class logits of a noisy image at its timestep."""

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        widths = self.build_encoder()
        self.pools_every_block = config.pool in ("spatial", "spatial_v2")
        # The spatial pools get the mean of every input block and of the middle block, which has the last block's width.
        self.out = build_head(config, widths[-1], sum(widths) + widths[-1])

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Shapes: x [N, in_channels, H, W]; timesteps [N]; result [N, out_channels], float logits."""
        emb = self.embed(timesteps)
        h, outputs = self.encode(x, emb)
        if self.pools_every_block:
            h = torch.cat([each.mean(dim=(2, 3)) for each in [*outputs, h]], dim=1)
        logits: Tensor = self.out(h)
        return logits


def build_head(config: ClassifierConfig, width: int, feature_width: int) -> nn.Sequential:
    """The pool and the layers after it, under the official indices of `out`."""
    if config.pool == "adaptive":
        last_conv = zero_parameters(Conv2d(width, config.out_channels, 1))
        return nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last_conv, nn.Flatten())
    if config.pool == "attention":
        map_size = config.image_size // 2 ** (len(config.channel_mult) - 1)
        pool = AttentionPool(map_size, width, config.num_head_channels, config.out_channels)
        return nn.Sequential(GroupNorm32(width), nn.SiLU(), pool)
    if config.pool == "spatial":
        return nn.Sequential(
            Linear(feature_width, SPATIAL_HIDDEN), nn.ReLU(), Linear(SPATIAL_HIDDEN, config.out_channels)
        )
    return nn.Sequential(
        Linear(feature_width, SPATIAL_HIDDEN),
        GroupNorm32(SPATIAL_HIDDEN),
        nn.SiLU(),
        Linear(SPATIAL_HIDDEN, config.out_channels),
    )
