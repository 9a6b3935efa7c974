"""Configurations of networks, under the names of the official constructor arguments: plain data, no torch."""

from dataclasses import dataclass
from typing import Literal

SCHEDULES = ("linear", "cosine")
FEWEST_TIMESTEPS = 20  # with fewer, the linear schedule has a beta above 1
MOST_TIMESTEPS = 100_000  # the length of a schedule's tables; published schedules have 1,000 and 4,000

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


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process of a network's training, by the official flags; keys and shapes do not show it.

    rescale_timesteps: the networks get t * 1000 / num_timesteps. predict_xstart: the output is x_0 and not eps.
    sigma_small: a network that does not learn its variance uses the posterior's and not beta.
    grey: the images have equal channels; the official code has no such flag.
    Raises: ValueError for invalid values.
    """

    schedule: str
    num_timesteps: int
    rescale_timesteps: bool = False
    predict_xstart: bool = False
    sigma_small: bool = False
    grey: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}; known are {', '.join(SCHEDULES)}")
        if type(self.num_timesteps) is not int or not FEWEST_TIMESTEPS <= self.num_timesteps <= MOST_TIMESTEPS:
            raise ValueError(f"num_timesteps must be an integer from {FEWEST_TIMESTEPS} to {MOST_TIMESTEPS}")
        for name in ("rescale_timesteps", "predict_xstart", "sigma_small", "grey"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false")
