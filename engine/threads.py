"""The default number of threads that compute on a CPU."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def usable_threads(cgroup: Path = CGROUP) -> int:
    """Return the number of threads: one per physical core, or OMP_NUM_THREADS; fewer if affinity or a quota limits
    them.

    A container with a quota of processor time still sees all cores. With more threads than the quota, most of them are
    throttled while the others wait for them, and a step takes many times as long.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    count = int(wanted) if wanted.isdecimal() else torch.cpu.get_capabilities().get("num_physical_cores")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return min(int(count or usable), usable, usable if quota is None else max(1, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """The control group's quota, in processors; None without a limit or without control groups."""
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
    """Set the number of threads of torch's operations in this thread, within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
