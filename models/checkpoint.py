"""Network files: safetensors that carry their own configuration, loaded strictly and never through a free pickle."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.classifier import NoisyClassifier
from models.config import ClassifierConfig, UNetConfig
from models.judge import Judge, JudgeConfig
from models.unet import build_unet

NetworkConfig = UNetConfig | ClassifierConfig | JudgeConfig
NetworkT = TypeVar("NetworkT", bound=nn.Module)
KINDS: dict[str, type[NetworkConfig]] = {"unet": UNetConfig, "classifier": ClassifierConfig, "judge": JudgeConfig}
HEADER_START = 8  # bytes: a safetensors file begins with its header's length, and keeps its data aligned to as many
SHOWN_KEYS = 3  # of a list of wrong keys: enough to see the pattern in one line


class WeightsError(Exception):
    """A weights file that cannot be used: one line that names the file and the key."""


def build_network(config: NetworkConfig) -> nn.Module:
    """A fresh network of a configuration."""
    match config:
        case UNetConfig():
            return build_unet(config)
        case ClassifierConfig():
            return NoisyClassifier(config)
        case JudgeConfig():
            return Judge(config)


def save_network(path: Path, state: dict[str, Tensor], config: NetworkConfig, *, dtype: torch.dtype) -> None:
    """Write a state dict with its configuration, atomically, floating tensors cast to dtype."""
    kind = next(name for name, kind in KINDS.items() if type(config) is kind)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    metadata = {"kind": kind, "config": json.dumps(dataclasses.asdict(config))}
    partial = path.with_suffix(".partial")
    partial.write_bytes(_in_one_order(save(tensors, metadata)))
    partial.replace(path)


def _in_one_order(content: bytes) -> bytes:
    # The library's header differs in order from call to call, and a file's hash is to name its weights.
    size = int.from_bytes(content[:HEADER_START], "little")
    end = HEADER_START + size
    header = json.dumps(json.loads(content[HEADER_START:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_START)
    return len(header).to_bytes(HEADER_START, "little") + header + content[end:]


def read_config(path: Path) -> NetworkConfig:
    """The configuration in a network file. Raises: WeightsError."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name}: not a readable safetensors file ({error})") from error
    if metadata.get("kind") not in KINDS:
        raise WeightsError(f"{path.name}: carries no network configuration; was it written by `adm train`?")
    make: Callable[..., NetworkConfig] = KINDS[metadata["kind"]]
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path.name}: its configuration does not fit this version ({error})") from error


def load_network(path: Path, expected: type[NetworkT], device: torch.device | str = "cpu") -> NetworkT:
    """Build the network that a file describes and load it strictly, in evaluation mode and without gradients.

    Raises: WeightsError for an unreadable file, another kind of network, missing, surplus or misshapen keys, or values
    that are not finite. Weights are stored as float16 or float32 and computed with in float32.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    config = read_config(path)
    try:
        model = build_network(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(f"{path.name}: no network can be built from its configuration ({error})") from error
    if not isinstance(model, expected):
        raise WeightsError(f"{path.name}: holds a {type(model).__name__}, expected a {expected.__name__}")
    load_state(model, read_tensors(path), path.name)
    return model.to(device).eval().requires_grad_(False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of a PyTorch file of plain tensors (weights_only). Raises: WeightsError."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or hostile file
        raise WeightsError(f"{path.name}: cannot be read as plain tensors ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path.name}: is not a state dict of tensors")
    return tensors


def load_state(model: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Copy a state dict into a model, strictly. Raises: WeightsError that names the first keys that differ."""
    own = model.state_dict()
    for problem, keys in (("lacks", own.keys() - tensors.keys()), ("has surplus", tensors.keys() - own.keys())):
        if keys:
            shown = ", ".join(sorted(keys)[:SHOWN_KEYS])
            raise WeightsError(
                f"{name}: {problem} {len(keys)} key(s): {shown}{' ...' if len(keys) > SHOWN_KEYS else ''}"
            )
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise WeightsError(f"{name}: {key} has shape {list(value.shape)}, expected {list(own[key].shape)}")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{name}: {key} holds values that are not finite")
    model.load_state_dict(tensors)
