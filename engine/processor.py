"""Describes this machine's processor by the fields that affect which kernels run and how long they take."""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "cache size", "flags")
NAME = "model name"


def processor() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; elsewhere, and if it has no name, NAME is its architecture."""
    first = CPU_INFO.read_text().partition("\n\n")[0] if CPU_INFO.exists() else ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {NAME: platform.machine()} | {name: fields[name] for name in FIELDS if name in fields}
