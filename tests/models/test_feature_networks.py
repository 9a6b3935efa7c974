"""Weights files of the networks that metrics take features from: Inception and DINOv2.

A missing, extra or misshapen key is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints.file_form import WeightsError
from models.networks import dinov2
from models.networks.dinov2 import DinoV2, TransformerSize, load_dinov2
from models.networks.inception import FEATURES, Inception, load_inception

TINY = TransformerSize(24, 2, 3)


@dataclass(frozen=True)
class Family:
    """Networks of one kind: how one is made, and how its file is loaded."""

    build: Callable[[], nn.Module]
    load: Callable[[Path], nn.Module]


FAMILIES = {"inception": Family(Inception, load_inception), "dinov2": Family(lambda: DinoV2(TINY), load_dinov2)}


@pytest.fixture(autouse=True)
def a_small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds a DINOv2 of 60,000 parameters to the known sizes; the smallest published one has 22 million."""
    monkeypatch.setitem(dinov2.SIZES, TINY.width, TINY)


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return {name: family.build().state_dict() for name, family in FAMILIES.items()}


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        ("inception", {"fc.bias": None}, r"lacks 1 key: fc\.bias"),
        ("inception", {"AuxLogits.fc.bias": torch.zeros(1000)}, "has surplus 1 key: AuxLogits"),
        (
            "inception",
            {"fc.weight": torch.zeros(1000, FEATURES)},
            r"fc\.weight has shape \[1000, 2048\], expected \[1008, 2048\]",
        ),
        ("inception", {"fc.bias": torch.full((1008,), float("nan"))}, r"fc\.bias has values that are not finite"),
        ("dinov2", {"norm.bias": None}, r"lacks 1 key: norm\.bias"),
        ("dinov2", {"head.weight": torch.zeros(9, 24)}, r"has surplus 1 key: head\.weight"),
        ("dinov2", {"norm.bias": torch.zeros(25)}, r"norm\.bias has shape \[25\], expected \[24\]"),
        ("dinov2", {"norm.bias": torch.full((24,), float("nan"))}, r"norm\.bias has values that are not finite"),
        ("dinov2", {"register_tokens": torch.zeros(1, 4, 24)}, r"has register tokens; take a file without them"),
        ("dinov2", {"pos_embed": torch.zeros(1, 1370, 25)}, r"is no DINOv2: its pos_embed has 25 channels"),
        ("dinov2", {"pos_embed": None}, r"is no DINOv2: its pos_embed has 0 channels"),
    ],
)
def test_other_weights_are_refused_by_the_key(
    weights: dict[str, dict[str, Tensor]],
    tmp_path: Path,
    family: str,
    changed: dict[str, Tensor | None],
    message: str,
) -> None:
    content = {key: value for key, value in (weights[family] | changed).items() if value is not None}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=rf"other\.pth: {message}"):
        FAMILIES[family].load(tmp_path / "other.pth")


@pytest.mark.parametrize("family", FAMILIES)
def test_file_with_code_to_run_is_refused(tmp_path: Path, family: str) -> None:
    torch.save(nn.ReLU(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"model\.pth: "):
        FAMILIES[family].load(tmp_path / "model.pth")
