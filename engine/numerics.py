"""The fingerprint of all that may change how numbers round: same request, seed and fingerprint, same bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from engine.stage import Stage

NOISE_VERSION = 1  # of the counter's layout and Box-Muller: raise it when either changes
TABLES_VERSION = 2  # of samplers' coefficients, time grids and guidance: raise it when they compute something else
LENGTH = 16


def settle_kernels() -> None:
    """Choose kernels that repeat themselves: no autotuning in each process anew, no TF32, no atomics in a backward."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def fingerprint(
    stages: Mapping[str, Stage], precision: str, weights: Sequence[str] = (), **encoding: str | None
) -> str:
    """A short hash of torch, device, CPU features, threads, precision, mode, weights and each stage's row shapes.

    weights: hashes of the networks' files. encoding: versions of what turns pixels into files, whose bytes the
    fingerprint promises too.
    """
    device = next(iter(stages.values())).device
    facts = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": {key: value for key, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)},
        "threads": torch.get_num_threads(),
        "precision": precision,
        "mode": sorted({stage.mode for stage in stages.values()}),
        "noise": NOISE_VERSION,
        "tables": TABLES_VERSION,
        "weights": sorted(weights),
        "encoding": encoding,
        "shapes": {key: [stage.network_shapes, stage.guide_shapes] for key, stage in sorted(stages.items())},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:LENGTH]
