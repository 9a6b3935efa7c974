"""What is known of an official checkpoint, as a table."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from models.checkpoints.presets import OFFICIAL_PIPELINES, Preset, Sampling
from models.networks.config import ClassifierConfig, UNetConfig

UNSET = (None, -1)  # values of fields that say nothing


def preset_table(preset: Preset) -> Table:
    """Flags, configuration, sampling settings and published figures; values are folded, never cut."""
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
