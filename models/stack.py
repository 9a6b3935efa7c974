"""A stack: the networks of one weights folder and the pipelines they make, as its stack.json says."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import WeightsError, load_network
from models.classifier import NoisyClassifier
from models.unet import SuperResUNet, UNet

MANIFEST = "stack.json"
HASH_LENGTH = 16
SCHEDULES = ("linear", "cosine")
FEWEST_TIMESTEPS = 20  # below, the linear schedule has a beta above 1


@dataclass(frozen=True)
class SamplingDefaults:
    """What a stage does where a request says nothing."""

    steps: int
    sampler: str
    eta: float = 0.0


@dataclass(frozen=True)
class PipelineSpec:
    """One pipeline of a stack. conditional False gives the network its "no class" row whatever the class asked for."""

    name: str
    conditional: bool
    class_required: bool
    guidance_scale: float
    sampling: SamplingDefaults
    upsampling: SamplingDefaults | None


@dataclass(frozen=True)
class DiffusionNetwork:
    """A diffusion network, the schedule it was trained on, and the hash of its file."""

    network: UNet
    schedule: str
    num_timesteps: int
    model_hash: str


@dataclass(frozen=True)
class GuidingNetwork:
    """A noisy classifier and the hash of its file."""

    network: NoisyClassifier
    model_hash: str


@dataclass(frozen=True)
class Stack:
    """Loaded networks and their pipelines; without a classifier nothing is guided.

    The label row after the last class is "no class", where there is one.
    """

    name: str
    class_names: tuple[str, ...]
    base: DiffusionNetwork
    classifier: GuidingNetwork | None
    upsampler: DiffusionNetwork | None
    pipelines: dict[str, PipelineSpec]

    @property
    def no_class_label(self) -> int | None:
        """The row of the label embedding that stands for no class; None where the network has none."""
        rows = self.base.network.config.num_classes
        return len(self.class_names) if rows is not None and rows > len(self.class_names) else None


def load_stack(folder: Path, device: torch.device | str = "cpu") -> Stack:
    """Load every network of a stack, strictly.

    Raises: WeightsError, one line that names the file and the key, for anything missing, damaged or that does not fit.
    """
    manifest = _read_manifest(folder / MANIFEST)
    try:
        class_names = tuple(manifest["classes"])
        base = _diffusion(folder, manifest["base"], UNet, device)
        classifier = _classifier(folder, manifest["classifier"], device) if "classifier" in manifest else None
        upsampler = None
        if "upsampler" in manifest:
            upsampler = _diffusion(folder, manifest["upsampler"], SuperResUNet, device)
        pipelines = {name: _pipeline(name, entry) for name, entry in manifest["pipelines"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder.name}/{MANIFEST}: a field is missing, unknown or wrong: {error}") from error
    stack = Stack(folder.name, class_names, base, classifier, upsampler, pipelines)
    _check_fit(stack)
    return stack


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise WeightsError(f"{path}: there is no such stack; ADM_WEIGHTS names the folder of stacks") from error
    except ValueError as error:
        raise WeightsError(f"{path.parent.name}/{path.name}: is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise WeightsError(f"{path.parent.name}/{path.name}: is not a JSON object")
    return manifest


def _diffusion(folder: Path, entry: dict[str, Any], kind: type[UNet], device: torch.device | str) -> DiffusionNetwork:
    path, schedule, num_timesteps = folder / entry["file"], entry["schedule"], entry["num_timesteps"]
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}; known are {', '.join(SCHEDULES)}")
    if not isinstance(num_timesteps, int) or num_timesteps < FEWEST_TIMESTEPS:
        raise ValueError(f"num_timesteps must be an integer of at least {FEWEST_TIMESTEPS}")
    network = load_network(path, kind, device)
    joined = 2 if isinstance(network, SuperResUNet) else 1  # the low-resolution image comes in beside x
    if (network.config.in_channels, network.config.out_channels) != (3 * joined, 6):
        raise WeightsError(f"{path.name}: must take {3 * joined} channels and give 6, RGB eps and variance values")
    return DiffusionNetwork(network, schedule, num_timesteps, file_hash(path))


def _classifier(folder: Path, entry: dict[str, Any], device: torch.device | str) -> GuidingNetwork:
    path = folder / entry["file"]
    return GuidingNetwork(load_network(path, NoisyClassifier, device), file_hash(path))


def _pipeline(name: str, entry: dict[str, Any]) -> PipelineSpec:
    upsampling = entry["upsampling"]
    return PipelineSpec(
        name=name,
        conditional=entry["conditional"],
        class_required=entry["class_required"],
        guidance_scale=float(entry["guidance_scale"]),
        sampling=SamplingDefaults(**entry["sampling"]),
        upsampling=None if upsampling is None else SamplingDefaults(**upsampling),
    )


def _check_fit(stack: Stack) -> None:
    classes, base = len(stack.class_names), stack.base.network.config
    rows = base.num_classes
    if rows is not None and rows not in (classes, classes + 1):
        raise WeightsError(f"{stack.name}: the base has {rows} label rows, {MANIFEST} names {classes} classes")
    if stack.classifier is not None:
        classifier = stack.classifier.network.config
        if classifier.out_channels != classes:
            raise WeightsError(
                f"{stack.name}: the classifier has {classifier.out_channels} classes, {MANIFEST} names {classes}"
            )
        if classifier.image_size != base.image_size:
            raise WeightsError(f"{stack.name}: classifier and base are of different image sizes")
    for spec in stack.pipelines.values():
        if spec.conditional != (rows is not None) and stack.no_class_label is None:
            needed = "a base with label rows" if spec.conditional else "a base with a 'no class' row, or with none"
            raise WeightsError(f"{stack.name}: the pipeline {spec.name!r} needs {needed}")
        if spec.upsampling is not None and stack.upsampler is None:
            raise WeightsError(f"{stack.name}: the pipeline {spec.name!r} upsamples, but there is no upsampler")
        if spec.guidance_scale and stack.classifier is None:
            raise WeightsError(f"{stack.name}: the pipeline {spec.name!r} is guided, but there is no classifier")


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's sha256: names the weights in images and announcements."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_LENGTH]
