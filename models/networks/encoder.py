"""The encoder half that UNet and classifier share: embedding, input blocks, middle block.

Source: guided-diffusion (MIT), unet.py.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from models.networks.attention import AttentionBlock
from models.networks.blocks import Downsample, ResBlock, timestep_embedding
from models.networks.config import EncoderConfig
from models.networks.convolution import Conv2d
from models.networks.linear import Linear


class Layers(nn.Sequential):
    """Layers that run in order; residual blocks also get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]  # Sequential passes one argument on
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class Encoder(nn.Module):
    """Timestep embedding, input blocks and middle block, registered under the official state-dict keys."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.emb_channels = 4 * config.model_channels
        self.time_embed = nn.Sequential(
            Linear(config.model_channels, self.emb_channels),
            nn.SiLU(),
            Linear(self.emb_channels, self.emb_channels),
        )

    def build_encoder(self) -> list[int]:
        """Register input_blocks and middle_block; returns the width of each input block's output.

        Separate from __init__, because the UNet's label embedding comes before them in the official order of keys.
        """
        blocks = list(self._input_blocks())
        self.input_blocks = nn.ModuleList(block for block, _ in blocks)
        widths = [width for _, width in blocks]
        self.middle_block = Layers(self.res_block(widths[-1]), self.attention(widths[-1]), self.res_block(widths[-1]))
        return widths

    def _input_blocks(self) -> Iterator[tuple[Layers, int]]:
        config = self.config
        width = config.width(0)
        yield Layers(Conv2d(config.in_channels, width, 3, padding=1)), width
        for level in range(len(config.channel_mult)):
            for _ in range(config.num_res_blocks):
                block = Layers(self.res_block(width, config.width(level)))
                width = config.width(level)
                if self.attends(level):
                    block.append(self.attention(width))
                yield block, width
            if level != len(config.channel_mult) - 1:
                yield Layers(self._downsample(width)), width

    def _downsample(self, width: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res_block(width, down=True)
        return Downsample(width, use_conv=self.config.conv_resample)

    def attends(self, level: int) -> bool:
        return 2**level in self.config.attention_resolutions

    def res_block(self, width: int, out: int | None = None, *, up: bool = False, down: bool = False) -> ResBlock:
        config = self.config
        return ResBlock(
            width,
            self.emb_channels,
            config.dropout,
            out_channels=out,
            use_scale_shift_norm=config.use_scale_shift_norm,
            up=up,
            down=down,
            rescale=config.rescale_residual,
        )

    def attention(self, width: int, num_heads: int | None = None) -> AttentionBlock:
        config = self.config
        heads = config.num_heads if num_heads is None else num_heads
        return AttentionBlock(width, heads, config.num_head_channels, new_order=config.use_new_attention_order)

    def embed(self, timesteps: Tensor) -> Tensor:
        """Embedding of the timesteps: [N] to [N, 4 * model_channels]."""
        sinusoid = timestep_embedding(timesteps, self.config.model_channels)
        emb: Tensor = self.time_embed(sinusoid)
        return emb

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run input and middle blocks; returns the middle's output and each input block's output, in order."""
        outputs = []
        for block in self.input_blocks:
            x = block(x, emb)
            outputs.append(x)
        return self.middle_block(x, emb), outputs
