"""The fingerprint of all that may change rounding. Equal requests, seeds and fingerprints give equal bytes."""

from collections.abc import Mapping
from typing import Any

import torch

from engine.processor import directing_variables
from engine.rounding import ROUNDING
from engine.short_hash import short_hash
from engine.stage import Stage


def settle_kernels() -> None:
    """Choose deterministic kernels: no autotuning per process, no TF32, no atomics in a backward pass.

    On a CPU, an operation runs on its calling thread alone, here and in all threads that this one starts;
    `engine.lanes` runs several threads.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def fingerprint(
    stages: Mapping[str, Stage], precision: str, pipeline: Mapping[str, Any] | None = None, **encoding: str | None
) -> str:
    """A short hash of all that determines an image's bytes besides its request.

    These are torch's version, `ROUNDING`, device, CPU, precision, environment variables that direct kernels, and of
    each stage the row shapes and `StageNetworks.mode`: eager, packed or compiled, and which norms.
    pipeline: `Pipeline.determinants`. encoding: versions of the encoder of files, because equal fingerprints also
    promise equal files.
    """
    device = next(iter(stages.values())).device
    facts = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": dict(torch.cpu.get_capabilities()),
        "precision": precision,
        "environment": directing_variables(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "modes": {key: stage.networks.mode for key, stage in stages.items()},
        "rounding": ROUNDING,
        "pipeline": pipeline,
        "encoding": encoding,
        "shapes": {key: [stage.row_shapes["network"], stage.row_shapes["guide"]] for key, stage in stages.items()},
    }
    return short_hash(facts)
