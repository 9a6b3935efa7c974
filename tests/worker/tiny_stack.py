"""A real stack that is small enough to load and run in a moment: seeded random weights, 8x8 base, 8 to 16 upsampler."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.checkpoints.network_file import NetworkConfig, build_network, save_network
from models.checkpoints.presets import SHAPE_NAMES
from tests.models import samples

BASE = replace(samples.BASE, num_classes=len(SHAPE_NAMES) + 1)
CLASSIFIER = replace(samples.CLASSIFIER, use_scale_shift_norm=True, out_channels=len(SHAPE_NAMES), pool="attention")
UPSAMPLER = replace(samples.UPSAMPLER, use_scale_shift_norm=True, resblock_updown=True)
NETWORKS: dict[str, NetworkConfig] = {"base": BASE, "classifier": CLASSIFIER, "upsampler": UPSAMPLER}


def write_tiny_stack(weights: Path, seed: int = 0) -> Path:
    """Write the stack as weights/demo, with the shipped stack's manifest; returns its folder."""
    folder = weights / "demo"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for name, config in NETWORKS.items():
        network = build_network(config)
        fill(network, generator)
        save_network(folder / f"{name}.safetensors", network.state_dict(), config, dtype=torch.float32)
    manifest = json.loads(Path("weights/demo/stack.json").read_text())
    (folder / "stack.json").write_text(json.dumps(manifest))
    return folder


def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Seeded weights everywhere: untrained networks end in zeros, and every image would be the same."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
