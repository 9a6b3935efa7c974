"""What a network is built from, in the official constructor arguments' names: plain data, no torch."""

from dataclasses import dataclass
from typing import Literal

PoolName = Literal["adaptive", "attention", "spatial", "spatial_v2"]


@dataclass(frozen=True)
class EncoderConfig:
    """The half that the UNet and the classifier share. attention_resolutions are downsampling factors."""

    image_size: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...]
    in_channels: int = 3
    dropout: float = 0.0
    conv_resample: bool = True
    num_heads: int = 1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    rescale_residual: bool = False

    def width(self, level: int) -> int:
        """Channels of a level, truncated as the official code does."""
        return int(self.channel_mult[level] * self.model_channels)


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """A diffusion UNet. num_classes None is unconditional; super_res joins a low-resolution image to the input."""

    out_channels: int = 6
    num_classes: int | None = None
    num_heads_upsample: int = -1
    super_res: bool = False


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    """A noisy classifier: out_channels logits through one of the four pools."""

    out_channels: int = 1000
    pool: PoolName = "attention"
