"""Network files: tensors with the configuration of their network, loaded strictly and without a second copy."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.checkpoints.inspection import NotAdmError, foreign, inspect_shapes
from models.checkpoints.tensor_file import WeightsError as WeightsError
from models.checkpoints.tensor_file import is_finite, read_metadata, shown, write_tensors
from models.checkpoints.tensor_file import read_tensors as read_tensors
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig
from models.networks.judge import Judge, JudgeConfig
from models.networks.unet import build_unet
from vocabulary.counts import counted

NetworkConfig = UNetConfig | ClassifierConfig | JudgeConfig
NetworkT = TypeVar("NetworkT", bound=nn.Module)
KINDS: dict[str, type[NetworkConfig]] = {"unet": UNetConfig, "classifier": ClassifierConfig, "judge": JudgeConfig}
SHOWN_KEYS = 3  # of a list of wrong keys: enough to see the pattern in one line


def build_network(config: NetworkConfig) -> nn.Module:
    """A newly initialised network of a configuration."""
    match config:
        case UNetConfig():
            return build_unet(config)
        case ClassifierConfig():
            return NoisyClassifier(config)
        case JudgeConfig():
            return Judge(config)


class _NoInitialisation(TorchFunctionMode):
    """Skips torch.nn.init, whose values are never used. It takes seconds; on the meta device its imports do."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def blank_network(config: NetworkConfig) -> nn.Module:
    """A network on the meta device: keys, shapes and dtypes without values."""
    with torch.device("meta"), _NoInitialisation():
        return build_network(config)


def metadata_of(config: NetworkConfig, process: DiffusionConfig | None = None) -> dict[str, str]:
    """The metadata of a network file: its configuration, and the diffusion process of its training if that is known."""
    kind = next(name for name, kind in KINDS.items() if type(config) is kind)
    metadata = {"kind": kind, "config": json.dumps(dataclasses.asdict(config))}
    return metadata if process is None else metadata | {"process": json.dumps(dataclasses.asdict(process))}


def save_network(
    path: Path,
    state: Mapping[str, Tensor],
    config: NetworkConfig,
    process: DiffusionConfig | None = None,
    *,
    dtype: torch.dtype,
) -> None:
    """Write a state dict with its network's configuration and diffusion process atomically.

    Floating-point tensors are cast to dtype.
    """
    write_tensors(path, state, dtype, metadata_of(config, process))


def read_config(path: Path) -> NetworkConfig:
    """The configuration in a network file. Raises: WeightsError."""
    metadata = read_metadata(path)
    if metadata.get("kind") not in KINDS:
        raise WeightsError(shown(path), "carries no network configuration: this project neither wrote nor converted it")
    make: Callable[..., NetworkConfig] = KINDS[metadata["kind"]]
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(shown(path), f"its configuration does not fit this version ({error})") from error


def read_process(path: Path) -> DiffusionConfig | None:
    """The diffusion process in a network file; None if it has none. Raises: WeightsError."""
    text = read_metadata(path).get("process")
    try:
        return None if text is None else DiffusionConfig(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(shown(path), f"its diffusion process does not fit this version ({error})") from error


def load_network(
    path: Path,
    expected: type[NetworkT],
    device: torch.device | str = "cpu",
    config: NetworkConfig | None = None,
) -> NetworkT:
    """Load a network strictly, in evaluation mode, without gradients, in float32.

    config: for a file without one, such as the official ones. On the CPU, float32 weights stay views of the mapped
    file, so that memory has no second copy. Weights of another dtype are cast, and weights for another device are
    moved, one at a time.
    Raises: WeightsError for an unreadable file, another kind of network, missing, surplus or misshapen keys, or values
    that are not finite.
    """
    config = config or read_config(path)
    try:
        model = blank_network(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(shown(path), f"no network can be built from its configuration ({error})") from error
    if not isinstance(model, expected):
        raise WeightsError(shown(path), f"contains a {type(model).__name__}, expected a {expected.__name__}")
    tensors = read_tensors(path)
    check_state(model, tensors, shown(path))
    model.load_state_dict({key: value.to(device, torch.float32) for key, value in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def check_state(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Compare a state dict with a model. Raises: WeightsError with the first keys that differ."""
    own = model.state_dict()
    for problem, keys in (("lacks", own.keys() - tensors.keys()), ("has surplus", tensors.keys() - own.keys())):
        if keys:
            shown = ", ".join(sorted(keys)[:SHOWN_KEYS]) + (" ..." if len(keys) > SHOWN_KEYS else "")
            raise WeightsError(name, f"{problem} {counted(len(keys), 'key')}: {shown}{_likeness(tensors)}")
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            shapes = f"has shape {list(value.shape)}, expected {list(own[key].shape)}"
            raise WeightsError(name, f"{key} {shapes}{_likeness(tensors)}")
        if not value.is_floating_point():
            raise WeightsError(name, f"{key} is of {value.dtype}, expected a floating dtype")
    for key, value in tensors.items():
        if not is_finite(value):
            raise WeightsError(name, f"{key} has values that are not finite")


def _likeness(tensors: Mapping[str, Tensor]) -> str:
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if other := foreign(shapes):
        return f"; it is {other}"
    try:
        presets = inspect_shapes(shapes).presets
    except NotAdmError:
        presets = ()
    return f"; its keys are those of {' or '.join(presets)}" if presets else ""
