"""The official command lines' flags, and the network that a set of them describes: plain data, no torch.

Source: guided-diffusion (MIT), script_util.py: its defaults, its tables of channel multipliers, and the division that
turns the feature-map sizes of the flag into downsampling factors.
"""

from collections.abc import Mapping
from typing import Any, get_args

from models.networks.config import ClassifierConfig, DiffusionConfig, PoolName, UNetConfig

Flags = Mapping[str, Any]

SHARED_DEFAULTS: dict[str, Any] = {
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
DIFFUSION_DEFAULTS = SHARED_DEFAULTS | {"image_size": 64, "channel_mult": "", "use_new_attention_order": False}
UPSAMPLER_DEFAULTS = SHARED_DEFAULTS | {"large_size": 256, "small_size": 64}
CLASSIFIER_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "classifier_use_fp16": False,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
UPSAMPLER_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (1, 1, 2, 2, 4, 4),
}
NUM_CLASSES = 1000
CLASSIFIER_HEAD_CHANNELS = 64


def with_defaults(flags: Flags, defaults: Flags) -> dict[str, Any]:
    """Return these flags and the defaults of the others. Raises: ValueError for an unknown flag."""
    if unknown := flags.keys() - defaults.keys():
        raise ValueError(f"unknown flag {min(unknown)}; there are {', '.join(sorted(defaults))}")
    return {**defaults, **flags}


def factors(sizes: str, image_size: int) -> tuple[int, ...]:
    """Downsampling factors of a flag such as "32,16,8", which names feature-map sizes."""
    return tuple(image_size // int(size) for size in sizes.split(","))


def channel_mult(table: Mapping[int, tuple[float, ...]], image_size: int, given: str = "") -> tuple[float, ...]:
    """The given flag, parsed as integers like in the official code, or the table's entry for the size."""
    if given:
        return tuple(int(each) for each in given.split(","))
    if image_size not in table:
        raise ValueError(f"no channel multipliers are known for image size {image_size}; give the flag channel_mult")
    return table[image_size]


def diffusion_config(flags: Flags) -> UNetConfig:
    """The base network of image_sample.py and classifier_sample.py."""
    full = with_defaults(flags, DIFFUSION_DEFAULTS)
    return UNetConfig(
        **_unet_fields(full, full["image_size"]),
        channel_mult=channel_mult(CHANNEL_MULT, full["image_size"], full["channel_mult"]),
        use_new_attention_order=full["use_new_attention_order"],
    )


def upsampler_config(flags: Flags) -> UNetConfig:
    """The network of super_res_sample.py, which gets the low-resolution image beside x and has fewer flags."""
    full = with_defaults(flags, UPSAMPLER_DEFAULTS)
    return UNetConfig(
        **_unet_fields(full, full["large_size"]),
        channel_mult=channel_mult(UPSAMPLER_CHANNEL_MULT, full["large_size"]),
        in_channels=6,
        super_res=True,
    )


def classifier_config(flags: Flags) -> ClassifierConfig:
    """The noisy classifier of classifier_sample.py; it has no flag for the qkv order and the channels of a head."""
    full = with_defaults(flags, CLASSIFIER_DEFAULTS)
    pool: PoolName = full["classifier_pool"]
    if pool not in get_args(PoolName):
        raise ValueError(f"unknown classifier_pool {pool!r}; there are {', '.join(get_args(PoolName))}")
    size = full["image_size"]
    return ClassifierConfig(
        image_size=size,
        model_channels=full["classifier_width"],
        num_res_blocks=full["classifier_depth"],
        attention_resolutions=factors(full["classifier_attention_resolutions"], size),
        channel_mult=channel_mult(CHANNEL_MULT, size),
        num_head_channels=CLASSIFIER_HEAD_CHANNELS,
        use_scale_shift_norm=full["classifier_use_scale_shift_norm"],
        resblock_updown=full["classifier_resblock_updown"],
        out_channels=NUM_CLASSES,
        pool=pool,
    )


def process_config(flags: Flags) -> DiffusionConfig:
    """The diffusion process of a base network or upsampler with these flags. Raises: KeyError; ValueError."""
    return DiffusionConfig(
        schedule=flags["noise_schedule"],
        num_timesteps=flags["diffusion_steps"],
        rescale_timesteps=flags["rescale_timesteps"],
        predict_xstart=flags["predict_xstart"],
        sigma_small=flags.get("sigma_small", False),
    )


def _unet_fields(full: Flags, image_size: int) -> dict[str, Any]:
    same = ("num_res_blocks", "num_heads", "num_head_channels", "num_heads_upsample", "dropout")
    switches = ("use_scale_shift_norm", "resblock_updown")
    return {
        "image_size": image_size,
        "model_channels": full["num_channels"],
        "attention_resolutions": factors(full["attention_resolutions"], image_size),
        "out_channels": 6 if full["learn_sigma"] else 3,
        "num_classes": NUM_CLASSES if full["class_cond"] else None,
        **{name: full[name] for name in (*same, *switches)},
    }
