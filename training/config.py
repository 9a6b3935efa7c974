"""The configuration of a training run: one typed model, read from a TOML file, a preset and the command line."""

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.judge import JudgeConfig
from runfolder.fields import flatten
from training.sections import Averages, Compute, Data, Diffusion, Network, Objective, Optimiser, Saving, Section

Kind = Literal["diffusion", "upsampler", "classifier", "judge"]
NetworkConfig = UNetConfig | ClassifierConfig | JudgeConfig


class ConfigError(ValueError):
    """A configuration cannot be used; the message is one line with the field and a remedy."""


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
        """The configuration of the network, for data with this many classes."""
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
