"""Describes what affects which kernels run here: the processor, and environment variables that libraries read."""

import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "cache size", "flags")
NAME = "model name"
DIRECTING = ("ATEN_", "CUBLAS_", "CUDNN_", "DNNL_", "MKL_", "NVIDIA_TF32_", "ONEDNN_", "TORCH_ALLOW_TF32_")
HARMLESS = ("_VERBOSE", "_NUM_THREADS")  # they direct no kernel: an operation runs on one thread


def directing_variables() -> dict[str, str]:
    """Environment variables by which torch and its libraries choose kernels, and with these how results round."""
    return {
        name: value for name, value in os.environ.items() if name.startswith(DIRECTING) and not name.endswith(HARMLESS)
    }


def processor() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; elsewhere, and if it has no name, NAME is its architecture."""
    first = CPU_INFO.read_text().partition("\n\n")[0] if CPU_INFO.exists() else ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {NAME: platform.machine()} | {name: fields[name] for name in FIELDS if name in fields}
