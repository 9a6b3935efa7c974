"""The configuration of a training run: one typed model, read from a TOML file, a preset and the command line."""

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datasets.listing import LabelsFrom
from models.networks.config import ClassifierConfig, DiffusionConfig, PoolName, UNetConfig
from models.networks.judge import JudgeConfig
from runfolder.fields import flatten
from vocabulary.counts import counted
from vocabulary.precisions import Precision

Kind = Literal["diffusion", "upsampler", "classifier", "judge"]
NetworkConfig = UNetConfig | ClassifierConfig | JudgeConfig
Beta = Annotated[float, Field(ge=0, lt=1)]

NORM_GROUPS = 32  # of every group norm; a level's channels are a multiple


class ConfigError(ValueError):
    """A configuration cannot be used; the message is one line with the field and a remedy."""


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
        default=1.0, ge=1, le=10, description="largest factor by which an image's colours are drawn away from its grey"
    )
    brightness: float = Field(
        default=1.0, ge=1, le=10, description="largest factor by which an image's values are multiplied or divided"
    )
    tint: float = Field(
        default=0.0, ge=0, le=100, description="standard deviation of what is added to each colour, of 255"
    )
    padding: int = Field(default=0, ge=0, description="black pixels added at each edge of every image")
    held_out_below: int = Field(
        default=0,
        ge=0,
        le=255,
        description="images whose SHA-256 begins with a byte below this are held out of training",
    )
    loader_processes: int | None = Field(
        default=None, ge=0, description="processes that decode images; none: one per core, up to 8, if it is faster"
    )

    @property
    def recolours(self) -> bool:
        """Whether each use of an image draws other colours."""
        return self.saturation > 1 or self.brightness > 1 or self.tint > 0


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
            raise ValueError(f"attention_sizes has {strange[0]}; the maps of this network have {sizes}")
        widths = [int(each * self.model_channels) for each in self.channel_mult]
        for width in (*widths, *self.widths):
            if width < NORM_GROUPS or width % NORM_GROUPS:
                raise ValueError(
                    f"a level has {width} channels; channel_mult * model_channels and widths are multiples of "
                    f"{NORM_GROUPS}"
                )
        attending = [width for width, size in zip(widths, sizes, strict=True) if size in self.attention_sizes]
        divisor = self.num_heads if self.num_head_channels == -1 else self.num_head_channels
        for width in (*attending, widths[-1]):  # the middle attends always
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
        default=None, gt=0, description="largest norm of the gradient; none: the official training's"
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


class RunConfig(Section):
    """A whole training run."""

    kind: Kind
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the weights, the order of the data and the noise")
    data: Data = Data()
    network: Network
    process: Diffusion = Diffusion()
    objective: Objective = Objective()
    optimiser: Optimiser
    averages: Averages = Averages()
    compute: Compute = Compute()
    saving: Saving = Saving()

    @model_validator(mode="after")
    def belongs_together(self) -> Self:
        if (self.kind == "upsampler") != (self.network.small_size is not None):
            raise ValueError("network.small_size belongs to an upsampler, and an upsampler needs it")
        if self.objective.label_dropout and (self.kind != "diffusion" or not self.data.labelled):
            raise ValueError("objective.label_dropout needs a diffusion network and data.labelled")
        if self.kind in ("classifier", "judge") and not self.data.labelled:
            raise ValueError(f"a {self.kind} needs data.labelled")
        if self.kind == "classifier" and self.network.pool == "attention" and self.network.num_head_channels == -1:
            raise ValueError("network.pool = 'attention' needs network.num_head_channels")
        if self.data.source == "shapes" and self.data.path is not None:
            raise ValueError("data.path belongs to data.source = 'images'; leave one of them out")
        if self.data.source == "images" and self.data.path is None:
            raise ValueError("data.path is missing: give the images, or --images FOLDER")
        return self

    def network_config(self, num_classes: int) -> NetworkConfig:
        """The network for data of so many classes."""
        given = self.network
        if self.kind == "judge":
            return JudgeConfig(given.image_size, num_classes, given.widths)
        shared: dict[str, Any] = {
            "attention_resolutions": tuple(given.image_size // each for each in given.attention_sizes),
            **given.model_dump(exclude={"attention_sizes", "pool", "small_size", "widths"}),
        }
        if self.kind == "classifier":
            return ClassifierConfig(**shared, out_channels=num_classes, pool=given.pool)
        upsamples = self.kind == "upsampler"
        return UNetConfig(
            **shared,
            in_channels=6 if upsamples else 3,
            out_channels=6 if self.process.learn_sigma else 3,
            num_classes=num_classes + (self.objective.label_dropout > 0) if self.data.labelled else None,
            super_res=upsamples,
        )


def read_config(given: Mapping[str, Any]) -> RunConfig:
    """A run's configuration from nested fields. Raises: ConfigError, which names every wrong field."""
    try:
        return RunConfig.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(each) for each in item['loc']) or 'the configuration'}: {_reason(item)}"
            for item in error.errors()
        )
        raise ConfigError(wrong) from error


def _reason(item: Any) -> str:
    match item["type"]:
        case "extra_forbidden":
            return "is not a known field; adm train --schema lists them"
        case "missing":
            return "is missing"
    return str(item["msg"]).removeprefix("Value error, ")


def read_config_file(path: Path) -> dict[str, Any]:
    """The fields of a .toml or .json file. Raises: ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # wrong syntax, or bytes that are not text
        raise ConfigError(f"{path}: is not {'JSON' if path.suffix == '.json' else 'TOML'} ({error})") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: has no fields")
    return fields


def merge(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields, updated by changes."""
    merged = dict(fields)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


FREE = frozenset({"compute.device", "data.loader_processes"})
"""Fields that may change between two starts of a run, because they change neither draws nor the meaning of weights."""


def check_allowed(allowed: Collection[str], config: RunConfig) -> None:
    """Check the fields of --allow-change. Raises: ConfigError for an unknown field."""
    if unknown := sorted(set(allowed) - flatten(config.model_dump(mode="json")).keys() - {"data"}):
        raise ConfigError(
            f"--allow-change {unknown[0]}: is not a field of the configuration; adm train --schema lists them"
        )


def refuse_changes(stored: Mapping[str, Any], given: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse fields that differ from the run's start. Raises: ConfigError, which names each of them."""
    old, new = flatten(stored), flatten(given)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if wrong := [name for name in names if name not in {*allowed, *FREE}]:
        changes = ", ".join(f"{name} ({old.get(name)!r} before, {new.get(name)!r} now)" for name in wrong)
        raise ConfigError(f"the run began with another configuration: {changes}; allow each with --allow-change FIELD")
