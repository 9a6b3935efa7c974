"""Holding a checkpoint to its preset, and converting one: every key, shape, dtype and value, one line a difference."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.answers import Answers, AnswersError, resolve
from models.checkpoints.inspection import foreign, inspect_shapes
from models.checkpoints.network_file import NetworkConfig, blank_network, metadata_of, read_config
from models.checkpoints.presets import PRESETS, Preset
from models.checkpoints.provenance import ChangedFileError, recorded_hash, write_record
from models.checkpoints.tensor_file import WeightsError, is_finite, read_metadata, read_network, write_tensors
from models.checkpoints.wrapping import Network


def preset_of(path: Path, name: str | None = None) -> Preset | None:
    """The preset of that name, else the one that the file is named after, if any. Raises: WeightsError."""
    if name is None:
        return PRESETS.get(path.name.partition(".")[0])
    if name not in PRESETS:
        raise WeightsError(f"{path.name}: no preset is named {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def expected(path: Path, preset: str | None, tensors: Mapping[str, Tensor]) -> tuple[str, NetworkConfig]:
    """What a file is to be, in words and as a network: its preset's, else as it says itself, else as its keys tell.

    Raises: WeightsError; NotAdmError where none of them says.
    """
    if (named := preset_of(path, preset)) is not None:
        return named.name, named.config
    if "kind" in read_metadata(path):
        return "the network that it says it is", read_config(path)
    return "a whole ADM network", inspect_shapes(shapes_of(tensors)).config


def differences(tensors: Mapping[str, Tensor], config: NetworkConfig) -> list[str]:
    """Everything in which a state dict is not a network's, one line each.

    Files may be of lower precision, and mix them: the official `convert_to_fp16` makes halves of convolutions alone.
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
    return lines + [f"{key} holds values that are not finite" for key, value in tensors.items() if not is_finite(value)]


def verify(path: Path, tensors: Mapping[str, Tensor], config: NetworkConfig) -> list[str]:
    """What is wrong with a file that has these tensors, one line each, its record included."""
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
    """Write a checkpoint as safetensors of a dtype, with its configuration and process where known, and record it.

    Returns the network that was written, which is that at `where` in the file, as `read_network` takes it.
    Configuration and process are its preset's, or what its keys and the answers say together; with neither, tensors
    alone are written.
    The source is mapped and the target written a tensor at a time, so that no second copy is ever in memory.
    Raises: WeightsError where the source is not its preset's, and for values that are not finite in dtype; NotAdmError
    and AnswersError where answers do not suit the file or settle it; nothing is written then.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target.name}: converted files are named .safetensors")
    if target.exists() and target.samefile(source):
        raise WeightsError(f"{target.name}: is the file to convert")
    network = read_network(source, where)
    identity = _identity(source, network.tensors, preset, answers)
    write_record(target, write_tensors(target, network.tensors, dtype, identity))
    return network


def _identity(
    source: Path, tensors: Mapping[str, Tensor], preset: Preset | None, answers: Answers | None
) -> dict[str, str] | None:
    """What the file is to say of its network; None where nobody knows. Raises: as convert."""
    if other := foreign(shapes_of(tensors)):
        raise WeightsError(f"{source.name}: is {other}")
    if preset is not None:
        _hold(source, tensors, preset.config, preset.name)
        return metadata_of(preset.config, preset.process) | {"preset": preset.name}
    if answers is None or not answers.given():
        return None
    resolved = resolve(shapes_of(tensors), answers)
    if lines := resolved.missing():
        raise AnswersError(lines)
    _hold(source, tensors, resolved.config, "a whole network")
    return metadata_of(resolved.config, resolved.process)


def _hold(source: Path, tensors: Mapping[str, Tensor], config: NetworkConfig, name: str) -> None:
    if lines := differences(tensors, config):
        option = f" --preset {name}" if name in PRESETS else ""
        more = f" (and {len(lines) - 1} more: adm models verify {source}{option})" if len(lines) > 1 else ""
        raise WeightsError(f"{source.name}: is not {name}: {lines[0]}{more}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict, by key."""
    return {key: tuple(value.shape) for key, value in tensors.items()}
