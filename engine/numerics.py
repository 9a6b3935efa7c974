"""The fingerprint of all that may change how numbers round: same request, seed and fingerprint, same bytes."""

import hashlib
import json
from collections.abc import Mapping

import torch

from engine.stage import Stage

NOISE_VERSION = 1  # of the counter's layout and Box-Muller: raise it when either changes
LENGTH = 16


def fingerprint(stages: Mapping[str, Stage], precision: str) -> str:
    """A short hash of torch, device, CPU features, threads, precision and each stage's row shapes."""
    device = next(iter(stages.values())).device
    facts = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": {key: value for key, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)},
        "threads": torch.get_num_threads(),
        "precision": precision,
        "mode": "eager",
        "noise": NOISE_VERSION,
        "shapes": {key: [stage.network_shapes, stage.classifier_shapes] for key, stage in sorted(stages.items())},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:LENGTH]
