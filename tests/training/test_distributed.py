"""Several processes train as one does at the same batch size."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runfolder.folder import STATE
from runfolder.stats import read_lines
from tests.training.samples import write_npz
from training.state import read_state

ROOT = Path(__file__).parents[2]


def start_training(processes: int, folder: Path, data: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["-m", "tests.training.samples", str(folder), str(data), str(steps)]
    return subprocess.Popen([*command, *program], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_repeat_bit_for_bit_when_killed(tmp_path: Path) -> None:
    data, steps = write_npz(tmp_path / "images.npz"), 12
    for name, processes in (("one", 1), ("two", 2)):
        assert start_training(processes, tmp_path / name, data, steps).wait() == 0
    one, two = (read_lines(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [2, 4, 6, 8, 10, 12]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    killed = tmp_path / "killed"
    training = start_training(2, killed, data, steps)
    while training.poll() is None and not (killed / STATE).exists():
        time.sleep(0.01)
    os.killpg(training.pid, signal.SIGKILL)  # torchrun and both of its processes
    training.wait()
    assert start_training(2, killed, data, steps).wait() == 0
    undisturbed, resumed = (read_state(tmp_path / name / STATE)["network"] for name in ("two", "killed"))
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
