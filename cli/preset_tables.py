"""Tables of the official checkpoints and pipelines: all of them, and the properties of one checkpoint."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS, Preset, Sampling
from models.networks.config import ClassifierConfig, UNetConfig

UNSET = (None, -1)  # values of fields without information


def preset_table(preset: Preset) -> Table:
    """Flags, configuration, sampling settings and published figures; long values are wrapped, not cut."""
    table = Table(Column(no_wrap=True), Column(overflow="fold"), show_header=False)
    table.title = f"{preset.name} ({preset.role})"
    table.add_row("file", preset.url)
    table.add_row("flags", " ".join(f"--{flag} {value}" for flag, value in preset.flags.items()))
    table.add_section()
    for field, value in _network(preset.config):
        table.add_row(field, str(value))
    table.add_section()
    if preset.process:
        table.add_row("schedule", f"{preset.process.schedule}, {preset.process.num_timesteps} timesteps")
    for field, value in _settings(preset.sampling) if preset.sampling else ():
        table.add_row(field, value)
    for figures in preset.published:
        table.add_row("published", _inline(dataclasses.asdict(figures)))
    made = [each.name for each in OFFICIAL_PIPELINES.values() if preset.name in each.files]
    table.add_row("pipelines", ", ".join(made))
    return table


def _network(config: UNetConfig | ClassifierConfig) -> Iterator[tuple[str, Any]]:
    for field, value in dataclasses.asdict(config).items():
        overruled = field == "num_heads" and config.num_head_channels != -1
        if value not in UNSET and not overruled:
            yield field, value


def _settings(sampling: Sampling) -> Iterator[tuple[str, str]]:
    for field, value in dataclasses.asdict(sampling).items():
        unguided = field == "guidance_scale" and sampling.classifier is None
        if value not in UNSET and not unguided:
            yield field, _inline(value) if isinstance(value, dict) else str(value)


def _inline(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value is not None)


def checkpoint_table() -> Table:
    """The official checkpoints."""
    table = Table("checkpoint", "role", "size", "parameters", "classes", title="Checkpoints")
    for preset in PRESETS.values():
        size = f"{preset.low_res_size or ''}{' to ' if preset.low_res_size else ''}{preset.config.image_size}"
        classes = str(len(preset.class_names) or "none")
        table.add_row(preset.name, preset.role, size, f"{preset.param_count / 1e6:.1f} M", classes)
    return table


def pipeline_table() -> Table:
    """The official pipelines, with their published figures."""
    table = Table("pipeline", "made of", "steps", "scale", "FID", title="Pipelines")
    for each in OFFICIAL_PIPELINES.values():
        fid = f"{each.published[0].fid:g}" if each.published else ""
        scale = f"{each.sampling.guidance_scale:g}" if each.sampling.classifier else ""
        table.add_row(each.name, ", ".join(each.files), str(each.sampling.steps), scale, fid)
    return table
