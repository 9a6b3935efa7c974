"""Verifies a checkpoint against its preset (keys, shapes, dtypes, values; one line per difference), and converts it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.inspection import foreign, inspect_shapes
from models.checkpoints.network_file import NetworkConfig, blank_network, metadata_of, read_config, read_process
from models.checkpoints.networks_in_files import Network
from models.checkpoints.open_flags import Answers, AnswersError, resolve
from models.checkpoints.presets import PRESETS, Preset
from models.checkpoints.provenance import ChangedFileError, recorded_hash, write_provenance
from models.checkpoints.tensor_file import WeightsError, is_finite, read_metadata, read_network, write_tensors
from models.networks.config import DiffusionConfig


class DifferentNetworkError(WeightsError):
    """A file's network is not the expected one; `lines` has every difference."""

    def __init__(self, source: Path, name: str, lines: Sequence[str]) -> None:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        super().__init__(source.name, f"is not {name}: {lines[0]}{more}")
        self.source, self.name, self.lines = source, name, tuple(lines)


def preset_of(path: Path, name: str | None = None) -> Preset | None:
    """The preset of that name, or else the one with the file's name, if any. Raises: WeightsError."""
    if name is None:
        return PRESETS.get(path.name.partition(".")[0])
    if name not in PRESETS:
        raise WeightsError(path.name, f"no preset is named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def expected(path: Path, preset: str | None, tensors: Mapping[str, Tensor]) -> tuple[str, NetworkConfig]:
    """The expected network of a file, in words and as a configuration: from its preset, its metadata, or its keys.

    Raises: WeightsError; NotAdmError if none of them determines it.
    """
    if (named := preset_of(path, preset)) is not None:
        return named.name, named.config
    if "kind" in read_metadata(path):
        return "the network of its own metadata", read_config(path)
    return "a whole ADM network", inspect_shapes(shapes_of(tensors)).config


def differences(tensors: Mapping[str, Tensor], config: NetworkConfig) -> list[str]:
    """All differences between a state dict and a network, one line each.

    Files may have lower and mixed precision: the official `convert_to_fp16` converts only convolutions.
    """
    if other := foreign(shapes_of(tensors)):
        return [f"is {other}"]
    want = blank_network(config).state_dict()
    lines = [f"lacks {key} {list(want[key].shape)}" for key in want if key not in tensors]
    lines += [f"has surplus {key} {list(tensors[key].shape)}" for key in tensors if key not in want]
    for key in (key for key in want if key in tensors):
        got = tensors[key]
        if got.shape != want[key].shape:
            lines.append(f"{key} has shape {list(got.shape)}, expected {list(want[key].shape)}")
        if not got.is_floating_point():
            lines.append(f"{key} is of {str(got.dtype).removeprefix('torch.')}, expected float32")
    return lines + [f"{key} has values that are not finite" for key, value in tensors.items() if not is_finite(value)]


def verify(path: Path, tensors: Mapping[str, Tensor], config: NetworkConfig) -> list[str]:
    """All errors of a file with these tensors, one line each, including differences from its provenance."""
    lines = differences(tensors, config)
    try:
        recorded_hash(path)
    except ChangedFileError as error:
        lines.append(str(error).removeprefix(f"{path.name}: "))
    return lines


def convert(
    source: Path,
    target: Path,
    dtype: torch.dtype,
    preset: Preset | None = None,
    answers: Answers | None = None,
    where: str | None = None,
) -> Network:
    """Write a checkpoint as safetensors of a dtype, with its provenance, and its configuration and diffusion process.

    Returns the written network: the one at `where` in the file, as for `read_network`.
    Configuration and diffusion process are its preset's, or follow from its keys and the answers; without preset and
    answers only tensors are written. The source is mapped and the target written one tensor at a time, so that memory
    has no second copy.
    Raises: WeightsError if the source is not its preset's, or values are not finite in dtype; NotAdmError and
    AnswersError if answers do not fit the file or leave flags open; then nothing is written.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(target.name, "converted files are named .safetensors")
    if target.exists() and target.samefile(source):
        raise WeightsError(target.name, "is the file to convert")
    network = read_network(source, where)
    identity = _identity(source, network.tensors, preset, answers)
    write_provenance(target, write_tensors(target, network.tensors, dtype, identity))
    return network


def _identity(
    source: Path, tensors: Mapping[str, Tensor], preset: Preset | None, answers: Answers | None
) -> dict[str, str] | None:
    """The metadata for the file; None if its network is unknown. Raises: the errors of convert."""
    if other := foreign(shapes_of(tensors)):
        raise WeightsError(source.name, f"is {other}")
    if preset is not None:
        _check_identity(source, tensors, preset.config, preset.name)
        return metadata_of(preset.config, preset.process) | {"preset": preset.name}
    if answers is None or not answers.given():
        return None
    resolved = resolve(shapes_of(tensors), answers)
    if lines := resolved.missing():
        raise AnswersError(lines)
    _check_identity(source, tensors, resolved.config, "a whole network")
    return metadata_of(resolved.config, _as_grey_as(source, resolved.process))


def _as_grey_as(source: Path, process: DiffusionConfig | None) -> DiffusionConfig | None:
    """The diffusion process with `grey` from the source, because no flag sets it."""
    stated = read_process(source) if source.suffix == ".safetensors" else None
    return process if process is None or stated is None else replace(process, grey=stated.grey)


def _check_identity(source: Path, tensors: Mapping[str, Tensor], config: NetworkConfig, name: str) -> None:
    if lines := differences(tensors, config):
        raise DifferentNetworkError(source, name, lines)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict, by key."""
    return {key: tuple(value.shape) for key, value in tensors.items()}
