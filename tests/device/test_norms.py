"""The fused norm's kernels: on a GPU as they are, on a CPU in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_of_norms_keep_their_laws(device: torch.device) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1" if device.type == "cpu" else "0"}
    options = ["-q", "-x", "-W", "default", "-p", "no:cacheprovider", f"--confcutdir={FOLDER}"]
    command = [sys.executable, "-m", "pytest", *options, str(FOLDER / "norm_laws.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
