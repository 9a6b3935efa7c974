"""Row shapes that agreed in an earlier start are taken from disk, as long as all that they depend on is the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.kept_shapes import KeptShapes
from engine.pipeline import build_stages
from engine.stage import Stage
from models.stack import load_stack
from tests.worker.tiny_stack import write_tiny_stack
from vocabulary.precisions import Precision

MAX_ROWS = 4


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_tiny_stack(tmp_path / "weights")


def start(weights: Path, kept: Path, max_rows: int = MAX_ROWS, precision: Precision = "fp32") -> Stage:
    """The base stage of a start that keeps its row shapes in a folder."""
    stack = load_stack(weights)
    return build_stages([stack], max_rows, precision=precision, threads=1, kept=KeptShapes(kept))[f"{stack.name}/base"]


def replace_in_files(kept: Path, text: str) -> None:
    """Replace what a start has kept, so that a later one shows whether it reads it."""
    for path in kept.glob("*.json"):
        path.write_text(text)


def test_second_start_takes_the_shapes_of_the_first(weights: Path, tmp_path: Path) -> None:
    first = start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", json.dumps({"network": [2, 4], "guide": [4]}))
    second = start(weights, tmp_path / "kept")
    assert first.row_shapes["network"][-1] == first.row_shapes["guide"][-1] == MAX_ROWS
    assert second.row_shapes == {"network": (2, 4), "guide": (4,)}


def test_images_of_a_second_start_have_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    steps = []
    for _ in range(2):
        stage = start(weights, tmp_path / "kept")
        steps.append(stage.step([stage.rehearsal()])[0].x)
    assert torch.equal(*steps)


@pytest.mark.parametrize(
    "other",
    [{"max_rows": 2}, {"precision": "bf16"}],
    ids=["another largest batch", "another precision"],
)
def test_another_configuration_is_compared_anew(weights: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", json.dumps({"network": [3], "guide": [3]}))
    assert 3 not in start(weights, tmp_path / "kept", **other).row_shapes["network"]


def test_other_weights_are_compared_anew(weights: Path, tmp_path: Path) -> None:
    start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", json.dumps({"network": [3], "guide": [3]}))
    other = write_tiny_stack(tmp_path / "other", seed=1)
    assert 3 not in start(other, tmp_path / "kept").row_shapes["network"]


def test_environment_that_directs_kernels_is_compared_anew(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", json.dumps({"network": [3], "guide": [3]}))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert 3 not in start(weights, tmp_path / "kept").row_shapes["network"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"network": [1, 4]}', '{"network": [], "guide": []}', '{"network": [4, 1], "guide": [4]}'],
)
def test_damaged_file_is_compared_anew_and_replaced(weights: Path, tmp_path: Path, text: str) -> None:
    first = start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", text)
    assert start(weights, tmp_path / "kept").row_shapes == first.row_shapes
    assert all(json.loads(path.read_bytes()) for path in (tmp_path / "kept").glob("*.json"))


def test_forgotten_shapes_are_compared_anew(weights: Path, tmp_path: Path) -> None:
    first = start(weights, tmp_path / "kept")
    replace_in_files(tmp_path / "kept", json.dumps({"network": [3], "guide": [3]}))
    KeptShapes(tmp_path / "kept").forget()
    assert start(weights, tmp_path / "kept").row_shapes == first.row_shapes
