"""Tiny networks with seeded weights, and a stack of them on disk."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from models.checkpoints.network_file import save_network
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.unet import build_unet

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CLASSES = ("red", "green", "blue")
BASE = UNetConfig(
    image_size=8,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 1),
    num_head_channels=16,
    use_scale_shift_norm=True,
    resblock_updown=True,
    num_classes=len(CLASSES) + 1,
)
UPSAMPLER = UNetConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(),
    channel_mult=(1, 1),
    in_channels=6,
    super_res=True,
)
CLASSIFIER = ClassifierConfig(
    image_size=8,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 1),
    num_head_channels=16,
    out_channels=len(CLASSES),
)
SAMPLING = {"steps": 4, "sampler": "ddim", "eta": 0.0}
MANIFEST: dict[str, Any] = {
    "classes": list(CLASSES),
    "base": {"file": "base.safetensors", "schedule": "cosine", "num_timesteps": 1000},
    "classifier": {"file": "classifier.safetensors"},
    "upsampler": {"file": "upsampler.safetensors", "schedule": "linear", "num_timesteps": 1000},
    "pipelines": {
        "tiny": {
            "conditional": True,
            "class_required": True,
            "guidance_scale": 1,
            "sampling": SAMPLING,
            "upsampling": SAMPLING,
        },
        "tiny-uncond": {
            "conditional": False,
            "class_required": False,
            "guidance_scale": 2.5,
            "sampling": SAMPLING,
            "upsampling": None,
        },
    },
}


@torch.no_grad()
def seeded(model: ModuleT, seed: int) -> ModuleT:
    """Random weights everywhere, also where a fresh network starts with zeros; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        if parameter.dim() == 1 and name.endswith("weight"):
            parameter.add_(1.0)  # a norm's gain
    return model.eval().requires_grad_(False)


def write_stack(folder: Path) -> Path:
    """A stack of the three networks."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name, config in ((0, "base", BASE), (1, "upsampler", UPSAMPLER)):
        save_network(
            folder / f"{name}.safetensors", seeded(build_unet(config), seed).state_dict(), config, dtype=torch.float16
        )
    classifier = seeded(NoisyClassifier(CLASSIFIER), 2)
    save_network(folder / "classifier.safetensors", classifier.state_dict(), CLASSIFIER, dtype=torch.float16)
    write_manifest(folder, MANIFEST)
    return folder


def write_base_alone(folder: Path) -> Path:
    """A stack whose manifest names no classifier and no upsampler."""
    manifest = copy.deepcopy(MANIFEST)
    del manifest["classifier"], manifest["upsampler"], manifest["pipelines"]["tiny-uncond"]
    manifest["pipelines"]["tiny"] |= {"guidance_scale": 0, "upsampling": None}
    write_manifest(write_stack(folder), manifest)
    return folder


def replace_upsampler(folder: Path, num_classes: int) -> None:
    """Give a stack a class-conditional upsampler."""
    config = replace(UPSAMPLER, num_classes=num_classes)
    save_network(
        folder / "upsampler.safetensors", seeded(build_unet(config), 1).state_dict(), config, dtype=torch.float16
    )


FACES = replace(BASE, num_classes=None, channel_mult=(1, 2), model_channels=64, num_res_blocks=2, num_heads=4)


def write_faces(folder: Path) -> Path:
    """A checkpoint as other people have them: without classes, of other widths, with tensors only."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faces.pt"
    torch.save(seeded(build_unet(FACES), 3).state_dict(), path)
    return path


def write_manifest(folder: Path, manifest: object) -> None:
    (folder / "stack.json").write_text(json.dumps(manifest))
