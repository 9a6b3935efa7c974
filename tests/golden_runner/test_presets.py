"""The runner decides the preset cases: it passes ours, and no changed one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.golden_runner.runner import run_case

PRESETS = Path(__file__).parents[1] / "golden" / "presets"
NAME = "64x64_classifier"  # the smallest


def altered(folder: Path, change: Callable[[Any], object], name: str = f"{NAME}.keys.json") -> Path:
    body = json.loads((PRESETS / name).read_text())
    change(body)
    path = folder / name
    path.write_text(json.dumps(body))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop(),
        lambda table: table.insert(3, ["extra.weight", [1], "float32"]),
        lambda table: table[5].__setitem__(1, [1, 2]),
        lambda table: table[5].__setitem__(2, "float16"),
        lambda table: table.reverse(),
    ],
)
def test_changed_key_table_fails(tmp_path: Path, change: Callable[[Any], object]) -> None:
    assert run_case(altered(tmp_path, change)) != []


def test_key_table_of_another_adm_checkpoint_is_compared_with_the_inferred_network(tmp_path: Path) -> None:
    table = (PRESETS / f"{NAME}.keys.json").read_text()
    path = tmp_path / "mine.keys.json"
    path.write_text(table)
    assert run_case(path) == []
    path.write_text(table.replace("[512,512,3,3]", "[512,500,3,3]", 1))
    assert run_case(path) != []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gflops_forward_batch1", 38.2),
        ("param_count", 65_438_569),
        ("script", "image_sample.py"),
        ("image_size", 32),
        ("surprise", 1),
        ("guides", []),
        ("published_metrics", [{"fid": 1}]),
    ],
)
def test_changed_entry_of_the_table_fails_by_its_name(tmp_path: Path, key: str, value: Any) -> None:
    def change(body: Any) -> None:
        body["presets"] = {NAME: body["presets"][NAME] | {key: value}}

    lines = [line for line in run_case(altered(tmp_path, change, "presets.json")) if "is not in the case" not in line]
    assert len(lines) == 1
    assert key in lines[0]
    assert NAME in lines[0]
