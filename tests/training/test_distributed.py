"""Several processes train as one does at the same batch size."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runfolder.folder import STATE
from runfolder.stats import read_lines
from tests.training.samples import FIELDS, write_npz
from training.config import merge
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


@pytest.mark.process
@pytest.mark.slow
def test_process_that_loses_another_says_so_in_one_line_and_keeps_the_state(tmp_path: Path) -> None:
    data, folder = write_npz(tmp_path / "images.npz"), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "cli", "train", str(write_config(tmp_path, data)), "--out", str(folder)]
    first, second = (
        subprocess.Popen(program, cwd=ROOT, env={**shared, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    while first.poll() is None and not (folder / STATE).exists():
        time.sleep(0.01)
    second.kill()
    second.communicate()
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 1
    assert stderr.splitlines()[-1].startswith("adm: another process of the run was lost; start all of them again")
    assert read_state(folder / STATE)["step"] >= 0


def write_config(folder: Path, data: Path) -> Path:
    """The tiny run as a file, longer than the test waits for."""
    path = folder / "run.json"
    changes = {"data": {"path": str(data)}, "optimiser": {"steps": 10**6}, "saving": {"state_seconds": 1e-6}}
    path.write_text(json.dumps(merge(FIELDS, changes)))
    return path
