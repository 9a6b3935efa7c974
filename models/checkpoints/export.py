"""Exports networks for the official scripts: a `.pt` of the state dict in float32, and the flags that make the network.

Source: guided-diffusion (MIT), script_util.py. Values that no flag sets are constants in that file; they are listed.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from files.atomic import atomic_write
from models.checkpoints.file_form import WeightsError
from models.checkpoints.flags import (
    CHANNEL_MULT,
    CLASSIFIER_DEFAULTS,
    CLASSIFIER_HEAD_CHANNELS,
    DIFFUSION_DEFAULTS,
    NUM_CLASSES,
    UPSAMPLER_CHANNEL_MULT,
    UPSAMPLER_DEFAULTS,
    Flags,
)
from models.checkpoints.network_file import NetworkConfig, read_config, read_process
from models.checkpoints.tensor_file import read_tensors
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig
from models.stack_plan import read_stack

SCRIPT = "guided_diffusion/script_util.py"
LEARNED_SIGMA_CHANNELS = 6  # of the output
UNET_CONSTANTS = {"num_classes": NUM_CLASSES, "in_channels": 3, "conv_resample": True, "rescale_residual": False}
UPSAMPLER_CONSTANTS = UNET_CONSTANTS | {"in_channels": 6, "use_new_attention_order": False}
CLASSIFIER_CONSTANTS = {
    "out_channels": NUM_CLASSES,
    "num_head_channels": CLASSIFIER_HEAD_CHANNELS,
    "use_new_attention_order": False,
    "in_channels": 3,
    "conv_resample": True,
    "dropout": 0.0,
    "rescale_residual": False,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A written file, its command-line flags, and the fields of the network that have no flag."""

    path: Path
    flags: dict[str, Any]
    without_flag: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """The flags for the official scripts, and the changes to make in them."""
        yield f"{self.path}: " + " ".join(f"--{flag} {value}" for flag, value in self.flags.items())
        for field, value in self.without_flag.items():
            yield f"{self.path}: no official flag sets {field} = {value}: write it into {SCRIPT}"


def export(source: Path, folder: Path) -> list[Exported]:
    """Write every network of a stack's folder, or the one of a file, as NAME.pt into a folder.

    Raises: WeightsError for a source without configurations of its networks, or an existing target file.
    """
    networks: list[tuple[Path, NetworkConfig, DiffusionConfig | None]]
    if source.is_dir():
        networks = [(each.path, each.config, each.process) for each in read_stack(source).files]
    else:
        networks = [(source, read_config(source), read_process(source))]
    targets = [folder / f"{path.stem}.pt" for path, _, _ in networks]
    if present := next((each for each in targets if each.exists()), None):
        raise WeightsError(f"{present}", "is there already")
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(*network, target) for network, target in zip(networks, targets, strict=True)]


def _write(path: Path, config: NetworkConfig, process: DiffusionConfig | None, target: Path) -> Exported:
    if not isinstance(config, UNetConfig | ClassifierConfig):
        raise WeightsError(
            f"{path}", f"is a {type(config).__name__.removesuffix('Config')}, which the official code does not have"
        )
    if process is not None and process.grey:
        raise WeightsError(f"{path}", "generates grey images (process.grey), which the official scripts cannot do")
    with atomic_write(target) as file:
        torch.save({key: value.float() for key, value in read_tensors(path).items()}, file)
    return Exported(target, *official_flags(config, process))


def official_flags(
    config: UNetConfig | ClassifierConfig, process: DiffusionConfig | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The official flags with non-default values, and the fields without a flag, with values."""
    if isinstance(config, ClassifierConfig):
        return _non_default(_classifier_flags(config), CLASSIFIER_DEFAULTS), _without_flag(
            config, CLASSIFIER_CONSTANTS, CHANNEL_MULT
        )
    flags = _unet_flags(config) | ({} if process is None else _process_flags(process))
    if config.super_res:
        flags["large_size"] = config.image_size
        return _non_default(flags, UPSAMPLER_DEFAULTS), _without_flag(
            config, UPSAMPLER_CONSTANTS, UPSAMPLER_CHANNEL_MULT
        )
    flags |= {"image_size": config.image_size, "use_new_attention_order": config.use_new_attention_order}
    if CHANNEL_MULT.get(config.image_size) != config.channel_mult and all(
        each == int(each) for each in config.channel_mult
    ):
        flags["channel_mult"] = ",".join(str(int(each)) for each in config.channel_mult)
        return _non_default(flags, DIFFUSION_DEFAULTS), _without_flag(config, UNET_CONSTANTS)
    return _non_default(flags, DIFFUSION_DEFAULTS), _without_flag(config, UNET_CONSTANTS, CHANNEL_MULT)


def _non_default(flags: dict[str, Any], defaults: Flags) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value != defaults[name]}


def _without_flag(
    config: UNetConfig | ClassifierConfig,
    constants: dict[str, Any],
    channel_mult: Mapping[int, tuple[float, ...]] | None = None,
) -> dict[str, Any]:
    fixed = constants if channel_mult is None else constants | {"channel_mult": channel_mult.get(config.image_size)}
    return {name: getattr(config, name) for name, value in fixed.items() if getattr(config, name) not in (value, None)}


def _sizes(config: UNetConfig | ClassifierConfig) -> str:
    """Return the feature-map sizes with attention, or "1", which no map has, because the flag must not be empty."""
    return ",".join(str(config.image_size // factor) for factor in config.attention_resolutions) or "1"


def _classifier_flags(config: ClassifierConfig) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "classifier_width": config.model_channels,
        "classifier_depth": config.num_res_blocks,
        "classifier_attention_resolutions": _sizes(config),
        "classifier_use_scale_shift_norm": config.use_scale_shift_norm,
        "classifier_resblock_updown": config.resblock_updown,
        "classifier_pool": config.pool,
    }


def _unet_flags(config: UNetConfig) -> dict[str, Any]:
    same = ("num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels", "dropout")
    switches = ("use_scale_shift_norm", "resblock_updown")
    return {
        "num_channels": config.model_channels,
        "attention_resolutions": _sizes(config),
        "class_cond": config.num_classes is not None,
        "learn_sigma": config.out_channels == LEARNED_SIGMA_CHANNELS,
        **{name: getattr(config, name) for name in (*same, *switches)},
    }


def _process_flags(process: DiffusionConfig) -> dict[str, Any]:
    return {
        "diffusion_steps": process.num_timesteps,
        "noise_schedule": process.schedule,
        "predict_xstart": process.predict_xstart,
        "rescale_timesteps": process.rescale_timesteps,
    }
