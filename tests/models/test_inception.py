"""FID's Inception: its file, and images as TensorFlow 1 resized them; make test-peers has the rest."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.networks.inception import COUNTER, INPUT_SIZE, Inception, load_inception, resized


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Inception().state_dict()


def test_file_of_torch_save_loads_with_and_without_the_counters_of_training(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "whole.pth")
    torch.save({key: value for key, value in weights.items() if not key.endswith(COUNTER)}, tmp_path / "few.pth")
    for name in ("whole.pth", "few.pth"):
        network = load_inception(tmp_path / name)
        assert not network.training
        assert torch.equal(network.fc.weight, weights["fc.weight"])


@pytest.mark.parametrize("size", [32, 64, 299, 512])
def test_resizing_is_that_of_tensorflow_1(size: int) -> None:
    """Written out: place i is at i * size / 299 between two pixels, and the last pixel is repeated."""
    line = torch.arange(size) % 251
    got = resized(line.to(torch.uint8).expand(1, 3, size, size))[0, 0, 0]
    for i in (0, 1, 100, INPUT_SIZE - 1):
        place = i * size / INPUT_SIZE
        low, share = int(place), place - int(place)
        want = (1 - share) * float(line[low]) + share * float(line[min(low + 1, size - 1)])
        assert float(got[i]) == pytest.approx((want - 128) / 128, abs=1e-4)
    assert got.shape == (INPUT_SIZE,)
