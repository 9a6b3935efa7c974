"""The sections of a training run's configuration, each a set of typed fields."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from datasets.listing import LabelsFrom
from models.networks.config import DiffusionConfig, PoolName
from vocabulary.counts import counted
from vocabulary.precisions import Precision

Beta = Annotated[float, Field(ge=0, lt=1)]

NORM_GROUPS = 32  # of every group norm; a level's channels are a multiple


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """The training images and what is done to each of them."""

    source: Literal["images", "shapes"] = Field(default="images", description="image files, or rendered shapes")
    path: str | None = Field(
        default=None,
        description="of images: a folder, a zip or tar file, idx files of the MNIST family, or an official .npz",
    )
    count: int = Field(default=30_000, ge=1, description="of shapes: number of renders")
    labelled: bool = Field(default=True, description="whether the images have classes")
    labels_from: LabelsFrom = Field(default="auto", description="of a folder: where a file's class comes from")
    strict: bool = Field(default=False, description="refuse a folder in which a file cannot be used, or is no picture")
    flip: bool = Field(default=True, description="mirror an image with probability 1/2")
    random_crop: bool = Field(default=False, description="crop at a random place and scale, not in the middle")
    saturation: float = Field(
        default=1.0, ge=1, le=10, description="largest factor on the distance of an image's colours from grey"
    )
    brightness: float = Field(
        default=1.0, ge=1, le=10, description="largest factor by which an image's values are multiplied or divided"
    )
    tint: float = Field(
        default=0.0, ge=0, le=100, description="standard deviation of a random value added to each colour, of 255"
    )
    padding: int = Field(default=0, ge=0, description="black pixels added at each edge of every image")
    held_out_below: int = Field(
        default=0,
        ge=0,
        le=255,
        description="images whose SHA-256 begins with a byte below this are held out of training",
    )
    loader_processes: int | None = Field(
        default=None,
        ge=0,
        description="processes that decode images; none: one per core, up to 8, if images are decoded at every use",
    )

    @property
    def recolours(self) -> bool:
        """Whether each use of an image draws other colours."""
        return self.saturation > 1 or self.brightness > 1 or self.tint > 0

    @property
    def as_stored(self) -> Self:
        """These data without random changes at each use of an image."""
        undrawn = {"flip": False, "random_crop": False, "saturation": 1.0, "brightness": 1.0, "tint": 0.0}
        return self.model_copy(update=undrawn)


class Network(Section):
    """The network, in the official constructor's terms; its inputs, outputs and classes follow from the rest."""

    image_size: int = Field(ge=4, description="edge of the images, pixels")
    model_channels: int = Field(default=32, ge=32, multiple_of=32, description="channels of the first level")
    num_res_blocks: int = Field(default=1, ge=1, description="residual blocks of a level")
    channel_mult: tuple[float, ...] = Field(
        default=(1, 2, 3), min_length=1, description="channels of each level, in units of model_channels"
    )
    attention_sizes: tuple[int, ...] = Field(default=(8,), description="edges of the feature maps that attend, pixels")
    num_heads: int = Field(default=1, ge=1, description="attention heads, where num_head_channels is -1")
    num_head_channels: int = Field(default=32, ge=-1, description="channels of an attention head; -1: by num_heads")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    conv_resample: bool = True
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    pool: PoolName = Field(default="attention", description="pooling of a classifier")
    small_size: int | None = Field(default=None, ge=2, description="edge of an upsampler's input, pixels")
    widths: tuple[int, ...] = Field(
        default=(32, 64, 128, 128), min_length=1, description="of a judge: channels of its stages"
    )

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.image_size % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {counted(len(self.channel_mult) - 1, 'time')}"
            )
        sizes = [self.image_size // 2**level for level in range(len(self.channel_mult))]
        if strange := [each for each in self.attention_sizes if each not in sizes]:
            raise ValueError(f"attention_sizes has {strange[0]}; the feature maps of this network have sizes {sizes}")
        widths = [int(each * self.model_channels) for each in self.channel_mult]
        for width in (*widths, *self.widths):
            if width < NORM_GROUPS or width % NORM_GROUPS:
                raise ValueError(
                    f"a level has {width} channels; channel_mult * model_channels and widths are multiples of "
                    f"{NORM_GROUPS}"
                )
        attending = [width for width, size in zip(widths, sizes, strict=True) if size in self.attention_sizes]
        divisor = self.num_heads if self.num_head_channels == -1 else self.num_head_channels
        for width in (*attending, widths[-1]):  # the middle block always has attention
            if divisor < 1 or width % divisor:
                raise ValueError(f"num_head_channels or num_heads is {divisor}, which does not divide {width} channels")
        return self


class Diffusion(Section):
    """The diffusion process."""

    schedule: Literal["linear", "cosine"] = "cosine"
    num_timesteps: int = Field(default=1000, ge=20)
    learn_sigma: bool = Field(default=True, description="the network also predicts the variance")
    rescale_timesteps: bool = Field(default=False, description="the network sees t * 1000 / num_timesteps")
    predict_xstart: bool = Field(default=False, description="the network predicts x_0 and not eps")
    sigma_small: bool = Field(
        default=False, description="variance of a network that does not learn it: the posterior's"
    )
    grey: bool = Field(
        default=False,
        description="of diffusion networks and upsamplers: images are grey (colours are averaged), samples too",
    )

    @property
    def config(self) -> DiffusionConfig:
        return DiffusionConfig(**self.model_dump(exclude={"learn_sigma"}))


class Objective(Section):
    """The loss."""

    loss: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = Field(
        default="rescaled_mse", description="of a diffusion network; rescaled_mse is the hybrid loss of the paper"
    )
    label_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the labels replaced by 'no class'")
    timestep_sampler: Literal["uniform", "loss-second-moment"] = "uniform"
    weighting: Literal["none", "min-snr", "p2"] = Field(default="none", description="of the mse by timestep")
    min_snr_gamma: float = Field(default=5.0, gt=0, description="Hang et al. 2023, Eq. 8")
    p2_gamma: float = Field(default=1.0, gt=0, description="Choi et al. 2022, Eq. 8, with k = 1")
    noised: bool = Field(default=True, description="whether a classifier sees noised images")
    low_res_noise: float = Field(
        default=0.0, ge=0, le=1, description="largest deviation of the noise on an upsampler's input"
    )


class Optimiser(Section):
    """AdamW, its learning rate over the run, and the batch."""

    steps: int = Field(ge=1, description="length of the run")
    batch_size: int = Field(ge=1, description="images a step, of all processes together")
    microbatch: int | None = Field(
        default=None, ge=1, description="images a process computes at once; none: all of its share"
    )
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of the gradient; none: no limit, as in the official training"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps in which the rate rises to its value")
    decay_share: float = Field(
        default=0.0, ge=0, le=1, description="last share of the run, in which the rate falls to 0"
    )


class Averages(Section):
    """Averages of the weights; the first one is packed by default."""

    rates: tuple[float, ...] = Field(default=(0.9999,), description="of exponential averages")
    power: tuple[float, ...] = Field(default=(), description="relative widths of power-function averages (EDM2)")

    @model_validator(mode="after")
    def has_one(self) -> Self:
        if not self.rates and not self.power:
            raise ValueError("give at least one rate or power")
        if any(not 0 <= each < 1 for each in self.rates) or any(not 0 < each < 0.28 for each in self.power):
            raise ValueError("rates are in [0, 1) and power in (0, 0.28)")
        return self


class Compute(Section):
    """Device, precision and compilation of a step."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", Precision] = Field(
        default="auto", description="auto: bf16 where the device is fast at it"
    )
    checkpointing: bool = Field(default=False, description="recompute activations for the gradient, to save memory")
    compile: bool = Field(default=False, description="compile the network with torch.compile")


class Saving(Section):
    """The intervals at which a run writes its files."""

    state_seconds: float = Field(default=120.0, gt=0, description="between two saves of the state")
    snapshot_steps: int = Field(
        default=0, ge=0, description="between two snapshots, to which --rewind returns; 0: none"
    )
    keep_snapshots: int = Field(default=3, ge=1, description="snapshots that are kept, the newest ones")
    log_steps: int = Field(default=50, ge=1, description="steps that a line of stats.jsonl covers")
    preview_steps: int = Field(default=0, ge=0, description="between two previews; 0: one at the end")
    held_out_steps: int = Field(
        default=0, ge=0, description="between two measurements of the held-out images; 0: at the end"
    )
