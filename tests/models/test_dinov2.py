"""DINOv2's networks: their sizes and inputs; the golden cases dinov2_* hold their values to the official code's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.networks import dinov2
from models.networks.dinov2 import INPUT_SIZE, MEAN, SIZES, DinoV2, TransformerSize, load_dinov2, normalised

TINY = TransformerSize(24, 2, 3)
PUBLISHED = {384: 22_056_576, 768: 86_580_480, 1024: 304_368_640, 1536: 1_136_480_768}
"""Parameters of the official networks S, B, L and g by width."""


@pytest.fixture(autouse=True)
def a_small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 60 thousand parameters beside the published ones, the smallest of which has 22 million."""
    monkeypatch.setitem(dinov2.SIZES, TINY.width, TINY)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in DinoV2(TINY).state_dict().items()}


@pytest.mark.parametrize("width", PUBLISHED)
def test_published_sizes_have_the_official_numbers_of_parameters(width: int) -> None:
    with torch.device("meta"):
        network = DinoV2(SIZES[width])
    assert sum(each.numel() for each in network.parameters()) == PUBLISHED[width]


def test_file_of_torch_save_loads_as_the_network_of_its_width(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in weights.items()}, tmp_path / "weights.pth")
    network = load_dinov2(tmp_path / "weights.pth")
    assert network.size == TINY
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key].half().float()), key


def test_picture_of_imagenets_mean_colour_is_zero_to_the_network() -> None:
    pixels = (255 * torch.tensor(MEAN)).round().to(torch.uint8)[None, :, None, None].expand(1, 3, 20, 20)
    found = normalised(pixels)
    assert found.shape == (1, 3, INPUT_SIZE, INPUT_SIZE)
    assert float(found.abs().max()) < 0.5 / 255 / 0.224
