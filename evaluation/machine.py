"""Describes the machine and the versions by which figures were computed."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """The processor, its features that matter here, threads, and the GPU where there is one."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """The versions of this project, torch and Python."""
    return {"adm-serve": version("adm-serve"), "torch": torch.__version__, "python": platform.python_version()}
