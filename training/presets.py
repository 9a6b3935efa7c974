"""Configurations by name: the shipped stacks' and the paper's (Dhariwal & Nichol 2021, Tables 11 to 13).

A preset is one network's run without its data's path. Official networks come from models.checkpoints.presets, whose
flags are the published ones.
"""

from collections.abc import Mapping
from typing import Any

from models.checkpoints.presets import PRESETS as OFFICIAL
from models.networks.config import EncoderConfig
from training.config import ConfigError, merge

Fields = dict[str, Any]

_SMALL: Fields = {  # the networks of the shipped stacks
    "network": {"image_size": 32, "model_channels": 32, "channel_mult": [1, 2, 3], "attention_sizes": [8]},
    "optimiser": {"learning_rate": 1e-3, "warmup_steps": 200, "decay_share": 0.4, "clip": 1.0},
    "averages": {"rates": [0.999]},
    "saving": {"preview_steps": 2000},
}
_SHAPES: Fields = {"data": {"source": "shapes", "count": 30_000, "flip": False}}
_FASHION: Fields = {
    "data": {"padding": 2, "held_out_below": 37, "flip": False},  # all shoes point to the left
    # few channels at 32 and 16 pixels, which cost most and are simple in these pictures
    "network": {"channel_mult": [1, 1, 1, 1], "attention_sizes": [4]},
    "process": {"grey": True},
}


def _stack(name: str, data: Fields, steps: Mapping[str, int]) -> dict[str, Fields]:
    """The runs of a small stack: base, classifier, judge, and an upsampler if `steps` has one."""
    base = merge(
        _SMALL,
        {
            "kind": "diffusion",
            "objective": {"label_dropout": 0.15, "weighting": "min-snr"},
            "optimiser": {"batch_size": 32, "steps": steps["base"]},
        },
    )
    classifier = merge(
        _SMALL,
        {
            "kind": "classifier",
            "optimiser": {"batch_size": 64, "steps": steps["classifier"], "weight_decay": 0.05},
        },
    )
    judge = merge(
        _SMALL,
        {
            "kind": "judge",
            "optimiser": {"batch_size": 64, "steps": steps["judge"], "learning_rate": 2e-3, "weight_decay": 0.01},
        },
    )
    runs = {name: base, f"{name}-classifier": classifier, f"{name}-judge": judge}
    if "upsampler" in steps:
        runs[f"{name}-upsampler"] = merge(
            _SMALL,
            {
                "kind": "upsampler",
                "network": {"image_size": 64, "channel_mult": [1, 1, 2], "attention_sizes": [], "small_size": 32},
                "data": {"labelled": False},
                "process": {"schedule": "linear"},
                "optimiser": {"batch_size": 12, "steps": steps["upsampler"]},
            },
        )
    return {key: merge(each, data) for key, each in runs.items()}


# steps, batch size and learning rate of the paper's runs: appendix I, Tables 11 to 13
_PAPER: dict[str, tuple[str, Fields]] = {
    "official-64": ("64x64_diffusion", {"steps": 540_000, "batch_size": 2048, "learning_rate": 3e-4}),
    "official-128": ("128x128_diffusion", {"steps": 4_360_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-256": ("256x256_diffusion", {"steps": 1_980_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-512": ("512x512_diffusion", {"steps": 1_940_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-lsun-bedroom": ("lsun_bedroom", {"steps": 500_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-lsun-cat": ("lsun_cat", {"steps": 200_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-lsun-horse": ("lsun_horse", {"steps": 250_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-64-256-upsampler": ("64_256_upsampler", {"steps": 500_000, "batch_size": 256, "learning_rate": 1e-4}),
    "official-128-512-upsampler": ("128_512_upsampler", {"steps": 1_050_000, "batch_size": 256, "learning_rate": 1e-4}),
}
_PAPER_CLASSIFIERS: dict[str, tuple[str, Fields]] = {
    "official-64-classifier": ("64x64_classifier", {"steps": 300_000, "batch_size": 1024, "learning_rate": 6e-4}),
    "official-128-classifier": ("128x128_classifier", {"steps": 300_000, "batch_size": 256, "learning_rate": 3e-4}),
    "official-256-classifier": ("256x256_classifier", {"steps": 500_000, "batch_size": 256, "learning_rate": 3e-4}),
    "official-512-classifier": ("512x512_classifier", {"steps": 500_000, "batch_size": 256, "learning_rate": 3e-4}),
}


def _network_fields(config: EncoderConfig) -> Fields:
    kept = (
        "image_size",
        "model_channels",
        "num_res_blocks",
        "channel_mult",
        "num_heads",
        "num_head_channels",
        "dropout",
        "conv_resample",
        "use_scale_shift_norm",
        "resblock_updown",
        "use_new_attention_order",
    )
    sizes = [config.image_size // each for each in config.attention_resolutions]
    levels = [config.image_size // 2**level for level in range(len(config.channel_mult))]
    return {name: getattr(config, name) for name in kept} | {
        "attention_sizes": [each for each in sizes if each in levels]
    }


def _official(name: str, optimiser: Fields) -> Fields:
    preset = OFFICIAL[name]
    fields: Fields = {
        "kind": preset.role,
        "network": _network_fields(preset.config),
        "optimiser": optimiser | {"microbatch": 8},
        "averages": {"rates": [0.9999]},
        "compute": {"precision": "fp16", "checkpointing": True},
        "data": {"loader_processes": 8, "random_crop": preset.role == "classifier"},
        "saving": {"snapshot_steps": 10_000, "log_steps": 100, "preview_steps": 10_000},
    }
    if preset.role == "classifier":
        fields["optimiser"] |= {"weight_decay": 0.2 if name.startswith("64") else 0.05, "decay_share": 1.0}
        fields["network"]["pool"] = preset.flags.get("classifier_pool", "attention")
        return fields
    process = preset.process
    assert process is not None
    fields["process"] = {
        "schedule": process.schedule,
        "num_timesteps": process.num_timesteps,
        "rescale_timesteps": process.rescale_timesteps,
    }
    fields["data"]["labelled"] = bool(preset.flags.get("class_cond"))
    if preset.role == "upsampler":
        fields["network"]["small_size"] = preset.flags["small_size"]
    return fields


def preset_fields(name: str) -> Fields:
    """The fields of a named configuration. Raises: ConfigError, which lists the names."""
    if name in RUNS:
        return RUNS[name]
    official = _PAPER | _PAPER_CLASSIFIERS
    if name in official:
        return _official(*official[name])
    raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESET_NAMES)}")


def read_fields(path_fields: Mapping[str, Any], preset: str | None, changes: Mapping[str, Any]) -> Fields:
    """A preset's fields, those of a file over them, and the command line's over both. Raises: ConfigError."""
    given = dict(path_fields)
    data = given.get("data")
    if isinstance(data, Mapping) and "path" in data:  # images given in a file replace the preset's data
        given["data"] = {"source": "images", **data}
    name = preset or given.pop("preset", None)
    given.pop("preset", None)
    return merge(merge(preset_fields(name) if name else {}, given), changes)


RUNS: dict[str, Fields] = {
    **_stack("demo", _SHAPES, {"base": 60_000, "classifier": 10_000, "judge": 6_000, "upsampler": 20_000}),
    **_stack("fashion", _FASHION, {"base": 9_000, "classifier": 3_000, "judge": 6_000}),
}
RUNS["demo-judge"] = merge(RUNS["demo-judge"], {"data": {"flip": True}})
# If the network predicts eps, images sampled from pure noise are off by 51 of 255, for the reason below. The training
# images are recoloured, because a guided base makes more vivid colours than the renders have, and an upsampler that was
# trained only on renders makes them dull.
RUNS["demo-upsampler"] = merge(
    RUNS["demo-upsampler"],
    {
        "data": {"count": 12_000, "saturation": 6.0, "brightness": 1.5, "tint": 20.0},
        "process": {"predict_xstart": True, "learn_sigma": False},
        "objective": {"loss": "mse", "weighting": "none"},
    },
)
# An error of a predicted eps becomes an error of x_0 that is 1 / sqrt(alpha_bar) times as large, 16 times at the first
# step of 25: black backgrounds come out grey, however long the network is trained. The variance is not learned, because
# its loss outgrows that of x_0.
RUNS["fashion"] = merge(
    RUNS["fashion"],
    {
        "network": {"model_channels": 64},
        "process": {"predict_xstart": True, "learn_sigma": False},
        "objective": {"loss": "mse", "weighting": "none"},
    },
)
PRESET_NAMES = (*RUNS, *_PAPER, *_PAPER_CLASSIFIERS)
