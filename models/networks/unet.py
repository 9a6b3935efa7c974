"""The ADM UNet and its super-resolution form (Dhariwal & Nichol 2021, section 3 and Appendix).

Source: guided-diffusion (MIT), unet.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.blocks import Upsample
from models.networks.config import UNetConfig
from models.networks.convolution import Conv2d
from models.networks.encoder import Encoder, Layers
from models.networks.norm import GroupNorm32, zero_parameters


class UNet(Encoder):
    """Predicts eps (and, with twice the channels, the variance values v) from a noisy image and its timestep."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, self.emb_channels)
        skip_widths = self.build_encoder()
        self.output_blocks = nn.ModuleList(self._output_blocks(skip_widths))
        width = config.width(0)
        last_conv = zero_parameters(Conv2d(width, config.out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), last_conv)

    def _output_blocks(self, skip_widths: list[int]) -> Iterator[Layers]:
        config = self.config
        skips = list(skip_widths)
        width = skips[-1]
        heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
        for level in reversed(range(len(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                block = Layers(self.res_block(width + skips.pop(), config.width(level)))
                width = config.width(level)
                if self.attends(level):
                    block.append(self.attention(width, heads))
                if level and i == config.num_res_blocks:  # the upsampler ends the coarser level
                    block.append(self._upsample(width))
                yield block

    def _upsample(self, width: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res_block(width, up=True)
        return Upsample(width, use_conv=self.config.conv_resample)

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict for a batch.

        Shapes: x [N, in_channels, H, W] in the network's dtype; timesteps [N], as training counted them, integer or
        fractional; class_labels [N] int64, given if and only if the network is class-conditional; result
        [N, out_channels, H, W].
        """
        assert (class_labels is not None) == (self.config.num_classes is not None)
        emb = self.embed(timesteps)
        if class_labels is not None:
            emb = emb + self.label_emb(class_labels)
        h, skips = self.encode(x, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, last_conv = self.out
        predicted: Tensor = last_conv(norm(h, silu=True))
        return predicted


class SuperResUNet(UNet):
    """A UNet that also sees a low-resolution image, resized bilinearly and joined after x on the channel axis."""

    def forward(
        self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None, *, low_res: Tensor | None = None
    ) -> Tensor:
        """Like UNet.forward; low_res [N, C, h, w] in [-1, 1] is required, and no noise is added to it."""
        assert low_res is not None
        resized = F.interpolate(low_res, x.shape[2:], mode="bilinear", align_corners=False)
        return super().forward(torch.cat([x, resized.to(x.dtype)], dim=1), timesteps, class_labels)


def build_unet(config: UNetConfig) -> UNet:
    """The network that a configuration describes, with fresh weights."""
    return SuperResUNet(config) if config.super_res else UNet(config)
