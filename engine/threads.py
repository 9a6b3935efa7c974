"""How many threads compute on a CPU where nobody has said so."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def usable_threads(cgroup: Path = CGROUP) -> int:
    """One thread a physical core, or OMP_NUM_THREADS, or fewer where not all may be used.

    A container's quota of processor time hides no core: more threads than it pays for wait for each other, most of them
    throttled, and a step takes many times as long.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    count = int(wanted) if wanted.isdecimal() else torch.cpu.get_capabilities().get("num_physical_cores")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return min(int(count or usable), usable, usable if quota is None else max(1, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that the control group has; None where it is not limited, or the system has none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # version 1 of control groups
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return float(quota) / float(period) if float(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # "max"


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let this thread's operations share their work among so many threads; as before in the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
