"""A stack: loaded networks and their pipelines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from models.checkpoints.network_file import NetworkT, WeightsError, blank_network, load_network
from models.checkpoints.provenance import ChangedFileError, recorded_hash
from models.networks.classifier import NoisyClassifier
from models.networks.config import DiffusionConfig
from models.networks.unet import SuperResUNet, UNet
from models.stack_plan import NetworkFile, PipelineSpec, StackPlan, check_fit, read_stack

HASH_LENGTH = 16


@dataclass(frozen=True)
class DiffusionNetwork:
    """A diffusion network, the diffusion process of its training, and the hash of its file."""

    network: UNet
    process: DiffusionConfig
    model_hash: str


@dataclass(frozen=True)
class GuidingNetwork:
    """A noisy classifier and the hash of its file."""

    network: NoisyClassifier
    model_hash: str


@dataclass(frozen=True)
class Stack:
    """Loaded networks and their pipelines; without a classifier there is no guidance.

    The label row after the last class, if there is one, is "no class".
    """

    name: str
    class_names: tuple[str, ...]
    base: DiffusionNetwork
    classifier: GuidingNetwork | None
    upsampler: DiffusionNetwork | None
    pipelines: dict[str, PipelineSpec]

    @property
    def hashes(self) -> list[str]:
        """Hashes of its networks' files."""
        return [each.model_hash for each in (self.base, self.classifier, self.upsampler) if each is not None]

    @property
    def no_class_label(self) -> int | None:
        """The row of the label embedding for no class; None if the network has none."""
        rows = self.base.network.config.num_classes
        return len(self.class_names) if rows is not None and rows > len(self.class_names) else None


def load_stack(folder: Path, device: torch.device | str = "cpu") -> Stack:
    """Load all networks of a stack's folder, strictly. Raises: WeightsError like read_stack and load_plan."""
    return load_plan(read_stack(folder), device)


def load_plan(
    plan: StackPlan, device: torch.device | str = "cpu", loaded: dict[Path, nn.Module] | None = None
) -> Stack:
    """Load all networks of a stack, strictly; those in `loaded` are shared, and others are added to it.

    Raises: WeightsError, one line with the file and the key, for anything that is missing, damaged or does not fit.
    """
    networks: dict[Path, nn.Module] = {} if loaded is None else loaded

    def load(file: NetworkFile, kind: type[NetworkT]) -> NetworkT:
        network = networks.get(file.path) or load_network(file.path, kind, device, file.config)
        assert isinstance(network, kind)
        networks[file.path] = network
        return network

    return _stack_of(plan, load)


def outline_plan(plan: StackPlan) -> Stack:
    """A stack whose networks have no weights, for callers that compute nothing; files are only hashed.

    Raises: WeightsError for networks that do not fit.
    """

    def outline(file: NetworkFile, kind: type[NetworkT]) -> NetworkT:
        network = blank_network(file.config)
        assert isinstance(network, kind)
        return network

    return _stack_of(plan, outline)


class _Maker(Protocol):
    def __call__(self, file: NetworkFile, kind: type[NetworkT], /) -> NetworkT: ...


def _stack_of(plan: StackPlan, make: _Maker) -> Stack:
    check_fit(plan)

    def diffusion(file: NetworkFile, kind: type[UNet]) -> DiffusionNetwork:
        assert file.process is not None
        return DiffusionNetwork(make(file, kind), file.process, file_hash(file.path))

    def guiding(file: NetworkFile) -> GuidingNetwork:
        return GuidingNetwork(make(file, NoisyClassifier), file_hash(file.path))

    base = diffusion(plan.base, UNet)
    classifier = None if plan.classifier is None else guiding(plan.classifier)
    upsampler = None if plan.upsampler is None else diffusion(plan.upsampler, SuperResUNet)
    return Stack(plan.name, plan.class_names, base, classifier, upsampler, dict(plan.pipelines))


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256, which identify the weights in images and announcements.

    Raises: WeightsError for a file that is not the one recorded beside it.
    """
    try:
        return recorded_hash(path)[:HASH_LENGTH]
    except ChangedFileError as error:
        raise WeightsError(error.subject, error.reason) from error
