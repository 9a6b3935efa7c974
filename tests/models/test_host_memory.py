"""The memory of one step is reused by the next one, without new pages from the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import psutil
import torch
from models.host_memory import keep_freed_memory
{before}
def step():
    x = torch.ones(10_000_000)
    return [x + each for each in range(4)]
def resident():
    return psutil.Process().memory_info().rss
torch.ones(10_000_000).sum()  # what torch makes once
before = resident()
step()
print(resident() - before)
"""
OF_A_STEP = 200_000_000  # bytes of its five tensors, each larger than what the C library keeps by itself


def bytes_left_by_a_step(before: str) -> int:
    """Bytes that a step leaves to its process after every tensor is freed; measured in a process of its own.

    Not every system counts page faults, which are the cost itself.
    """
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    assert bytes_left_by_a_step("") < OF_A_STEP / 4
    assert bytes_left_by_a_step("keep_freed_memory()") > OF_A_STEP * 3 / 4
