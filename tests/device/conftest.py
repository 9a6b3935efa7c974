"""The device that these tests run on: the CPU, or what TEST_DEVICE names (`make test-gpu`).

They need torch, pytest, hypothesis, safetensors and numpy alone, so that they run on a machine that has no Redis.
"""

import os

import pytest
import torch

from engine.numerics import settle_kernels


@pytest.fixture(scope="session")
def device() -> torch.device:
    wanted = torch.device(os.environ.get("TEST_DEVICE", "cpu"))
    settle_kernels()
    torch.zeros(1, device=wanted)  # says at once that there is none
    return wanted
