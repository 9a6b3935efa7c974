"""What one step leaves is there for the next one: the system need not clear it again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from engine.host_memory import keep_freed_memory
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    x = torch.ones(4_000_000)
    return [x + each for each in range(4)]
for _ in range(30):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def page_faults(before: str) -> int:
    """Of ten steps that make 80 MB of tensors each, after others, in a process of their own."""
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    assert page_faults("keep_freed_memory()") < page_faults("") / 4
