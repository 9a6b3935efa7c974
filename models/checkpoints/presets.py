"""The shipped and the official networks as plain data; imports no torch, so that the service can use it.

Source of the official ones: guided-diffusion's README and evaluations/README (flags, sampling settings, figures). A
checkpoint contains no flags: these are from the README, and `models.checkpoints.flags` resolves them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from models.checkpoints.flags import (
    CLASSIFIER_DEFAULTS,
    DIFFUSION_DEFAULTS,
    UPSAMPLER_DEFAULTS,
    Flags,
    classifier_config,
    diffusion_config,
    process_config,
    upsampler_config,
    with_defaults,
)
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig

SHAPE_NAMES = (
    "sphere",
    "cube",
    "cylinder",
    "cone",
    "torus",
    "pyramid",
    "capsule",
    "octahedron",
    "prism",
    "star",
)
"""Classes of the demo stack, in the order of their labels; `prism` is hexagonal."""

OFFICIAL_FOLDER = "official"  # subfolder of the weights folder for official checkpoints, under their original names
OFFICIAL_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
"""The target of the official README's links; a checkpoint is at OFFICIAL_URL/FILE."""

Role = Literal["diffusion", "upsampler", "classifier"]


@cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 classes in the order of their labels: each synset's first name.

    Two synsets share their first name with another one; they get a second name in brackets, so that names are unique.
    """
    return tuple((Path(__file__).with_name("imagenet.txt")).read_text().splitlines())


@dataclass(frozen=True)
class Figures:
    """The official README's figures for 50,000 images; None if it has none."""

    dataset: str
    fid: float
    precision: float
    recall: float
    sfid: float | None = None
    inception_score: float | None = None


@dataclass(frozen=True)
class FastSampling:
    """The README's example of sampling in few steps."""

    steps: int
    sampler: str
    guidance_scale: float


@dataclass(frozen=True)
class Sampling:
    """The README's sampling of a checkpoint: respaced steps, DDPM, and the classifier that guides it, if any.

    best_steps: set if the README recommends more steps than its general setting.
    """

    steps: int = 250
    sampler: str = "ddpm"
    classifier: str | None = None
    guidance_scale: float = 0.0
    best_steps: int | None = None
    fast: FastSampling | None = None


@dataclass(frozen=True)
class Preset:
    """An official checkpoint: the README's flags, the network they make, and how it is sampled.

    param_count is that of the file.
    """

    name: str
    role: Role
    flags: Flags
    param_count: int
    sampling: Sampling | None = None
    published: tuple[Figures, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.name}.pt"

    @property
    def url(self) -> str:
        return f"{OFFICIAL_URL}/{self.file}"

    @property
    def all_flags(self) -> dict[str, Any]:
        """The README's flags over the official defaults."""
        return with_defaults(self.flags, _DEFAULTS[self.role])

    @property
    def config(self) -> UNetConfig | ClassifierConfig:
        """The network that the flags make."""
        return _CONFIGS[self.role](self.flags)

    @property
    def process(self) -> DiffusionConfig | None:
        """The network's diffusion process; None for a classifier, which uses that of the network it guides."""
        return None if self.role == "classifier" else process_config(self.all_flags)

    @property
    def low_res_size(self) -> int | None:
        """Edge of an upsampler's input, in pixels."""
        return self.all_flags.get("small_size")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of their labels; none for an unconditional network."""
        config = self.config
        conditional = isinstance(config, ClassifierConfig) or config.num_classes is not None
        return imagenet_names() if conditional else ()


_DEFAULTS: dict[Role, Flags] = {
    "diffusion": DIFFUSION_DEFAULTS,
    "upsampler": UPSAMPLER_DEFAULTS,
    "classifier": CLASSIFIER_DEFAULTS,
}
_CONFIGS: dict[Role, Callable[[Flags], UNetConfig | ClassifierConfig]] = {
    "diffusion": diffusion_config,
    "upsampler": upsampler_config,
    "classifier": classifier_config,
}

_COMMON = {
    "class_cond": True,
    "diffusion_steps": 1000,
    "learn_sigma": True,
    "noise_schedule": "linear",
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_fp16": True,
    "use_scale_shift_norm": True,
    "attention_resolutions": "32,16,8",
}
_LARGE = _COMMON | {"num_channels": 256, "num_head_channels": 64}
_LSUN = _LARGE | {"class_cond": False, "image_size": 256, "dropout": 0.1}
_LSUN_SAMPLING = Sampling(best_steps=1000)


def _diffusion(name: str, size: int, count: int, scale: float, *figures: Figures, **flags: Any) -> Preset:
    fast = FastSampling(25, "ddim", 1.0) if size == 128 else None
    guide = Sampling(classifier=f"{size}x{size}_classifier", guidance_scale=scale, fast=fast)
    return Preset(name, "diffusion", {"image_size": size, **flags}, count, guide, figures)


def _classifier(size: int, count: int, **flags: Any) -> Preset:
    return Preset(f"{size}x{size}_classifier", "classifier", {"image_size": size, **flags}, count)


def _lsun(name: str, *figures: Figures, **flags: Any) -> Preset:
    return Preset(name, "diffusion", {**_LSUN, **flags}, 552_814_086, _LSUN_SAMPLING, figures)


_ALL = (
    _classifier(64, 65_438_568, classifier_depth=4),
    _diffusion(
        "64x64_diffusion",
        64,
        295_904_454,
        1.0,
        Figures("ImageNet 64x64", 2.07, 0.74, 0.63),
        **_COMMON
        | {
            "noise_schedule": "cosine",
            "num_res_blocks": 3,
            "dropout": 0.1,
            "num_channels": 192,
            "num_head_channels": 64,
            "use_new_attention_order": True,
        },
    ),
    _classifier(128, 42_568_040),
    _diffusion(
        "128x128_diffusion",
        128,
        421_529_606,
        0.5,
        Figures("ImageNet 128x128", 2.97, 0.78, 0.59),
        **_COMMON | {"num_channels": 256, "num_heads": 4},
    ),
    _classifier(256, 54_096_360),
    _diffusion("256x256_diffusion", 256, 553_838_086, 1.0, Figures("ImageNet 256x256", 4.59, 0.82, 0.52), **_LARGE),
    _diffusion("256x256_diffusion_uncond", 256, 552_814_086, 10.0, **_LARGE | {"class_cond": False}),
    _classifier(512, 54_448_360),
    _diffusion(
        "512x512_diffusion",
        512,
        558_997_638,
        4.0,
        Figures("ImageNet 512x512", 7.72, 0.87, 0.42),
        **_LARGE | {"use_fp16": False},
    ),
    Preset(
        "64_256_upsampler",
        "upsampler",
        _COMMON | {"large_size": 256, "small_size": 64, "num_channels": 192, "num_heads": 4},
        311_795_910,
        Sampling(),
        (
            Figures("ImageNet 256x256", 3.94, 0.83, 0.53),
            # of the guided and upsampled samples in the example of evaluations/README
            Figures("ImageNet 256x256", 3.9425574129223264, 0.8265, 0.5309, 6.140433703346162, 215.8370361328125),
        ),
    ),
    Preset(
        "128_512_upsampler",
        "upsampler",
        _COMMON
        | {
            "attention_resolutions": "32,16",
            "large_size": 512,
            "small_size": 128,
            "num_channels": 192,
            "num_head_channels": 64,
        },
        308_835_270,
        Sampling(),
        (Figures("ImageNet 512x512", 3.85, 0.84, 0.53),),
    ),
    _lsun("lsun_bedroom", Figures("LSUN Bedroom", 1.9, 0.66, 0.51)),
    _lsun("lsun_cat", Figures("LSUN Cat", 5.57, 0.63, 0.52)),
    _lsun("lsun_horse", Figures("LSUN Horse", 2.57, 0.71, 0.55)),
    _lsun("lsun_horse_nodropout", dropout=0.0),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}
"""The 15 official checkpoints by name."""


@dataclass(frozen=True)
class OfficialPipeline:
    """A pipeline of official checkpoints: guided base, then the upsampler if there is one."""

    name: str
    base: str
    upsampler: str | None = None

    @property
    def sampling(self) -> Sampling:
        """The README's settings of the base."""
        sampling = PRESETS[self.base].sampling
        assert sampling is not None
        return sampling

    @property
    def files(self) -> tuple[str, ...]:
        """Presets of all networks, in the order in which an image passes them."""
        return tuple(filter(None, (self.base, self.sampling.classifier, self.upsampler)))

    @property
    def published(self) -> tuple[Figures, ...]:
        """The published figures of the last stage's images."""
        return PRESETS[self.upsampler or self.base].published


OFFICIAL_PIPELINES: Mapping[str, OfficialPipeline] = {
    each.name: each
    for each in (
        OfficialPipeline("adm-64", "64x64_diffusion"),
        OfficialPipeline("adm-128", "128x128_diffusion"),
        OfficialPipeline("adm-256", "256x256_diffusion"),
        OfficialPipeline("adm-256-uncond", "256x256_diffusion_uncond"),
        OfficialPipeline("adm-512", "512x512_diffusion"),
        OfficialPipeline("adm-64-256", "64x64_diffusion", "64_256_upsampler"),
        OfficialPipeline("adm-128-512", "128x128_diffusion", "128_512_upsampler"),
        OfficialPipeline("lsun-bedroom", "lsun_bedroom"),
        OfficialPipeline("lsun-cat", "lsun_cat"),
        OfficialPipeline("lsun-horse", "lsun_horse"),
        OfficialPipeline("lsun-horse-nodropout", "lsun_horse_nodropout"),
    )
}
"""The pipelines that official checkpoints can form, by name."""
