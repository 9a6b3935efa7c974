"""Describes the machine and the versions by which figures were computed."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from engine.processor import NAME, processor


def machine() -> dict[str, Any]:
    """The processor, its features that matter here, threads, and the GPU where there is one."""
    return {
        "cpu": processor()[NAME],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """The versions of this project, torch and Python."""
    return {"adm-serve": version("adm-serve"), "torch": torch.__version__, "python": platform.python_version()}
