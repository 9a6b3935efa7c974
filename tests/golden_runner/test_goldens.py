"""Run every reference case under tests/golden; the runner cannot pass a case that it has not compared."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from safetensors.torch import load_file, save_file

from tests.golden_runner.runner import find_cases, run_case

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = find_cases(GOLDEN)
SLOW_CASES = {"presets.json"}  # builds and runs 15 large networks, on the meta device
QKV = GOLDEN / "components" / "qkv_new.json"  # small, with one input and one output
SCHEDULE = GOLDEN / "schedule" / "linear_1000.json"


def marked(path: Path) -> ParameterSet:
    marks = [pytest.mark.slow] if path.name in SLOW_CASES else []
    return pytest.param(path, marks=marks, id=str(path.relative_to(GOLDEN).with_suffix("")))


@pytest.mark.parametrize("path", [marked(path) for path in CASES])
def test_reference_case_is_met(path: Path) -> None:
    assert run_case(path) == []


def test_cases_of_every_kind_are_there() -> None:
    networks, diffusion = {"classifier", "components", "presets", "unet"}, {"schedule", "single_step", "trajectory"}
    folders = networks | diffusion | {"evaluator", "losses"}
    assert {path.parent.name for path in CASES} == folders


def copy(case: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a case in another folder, its JSON changed; a field changed to None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.loads(case.read_text()) | changes
    path = folder / case.name
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not None}))
    if case.with_suffix(".safetensors").exists():
        shutil.copy(case.with_suffix(".safetensors"), folder)
    return path


def rewrite(path: Path, **changes: torch.Tensor) -> None:
    tensors = path.with_suffix(".safetensors")
    save_file(load_file(tensors) | {name.replace("__", "/"): value for name, value in changes.items()}, tensors)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.golden_runner", str(folder)]
    return subprocess.run(command, cwd=GOLDEN.parents[1], capture_output=True, text=True, check=False)


def test_kind_is_the_field_whatever_the_folder_is_called(tmp_path: Path) -> None:
    assert run_case(copy(QKV, tmp_path / "a" / "b" / "c")) == []


def test_kind_is_the_folder_where_the_field_is_missing(tmp_path: Path) -> None:
    assert run_case(copy(QKV, tmp_path / "deep" / "components", kind=None)) == []


@pytest.mark.parametrize("kind", ["sampler", "Component", ""])
def test_unknown_kind_fails(tmp_path: Path, kind: str) -> None:
    (problem,) = run_case(copy(QKV, tmp_path / "neither", kind=kind))
    assert problem.startswith("unknown kind")


def test_unknown_config_field_fails(tmp_path: Path) -> None:
    (problem,) = run_case(copy(QKV, tmp_path, config={"n_heads": 4, "temperature": 1}))
    assert problem == "unknown field of config: temperature"


def test_unknown_field_beside_config_fails(tmp_path: Path) -> None:
    (problem,) = run_case(copy(QKV, tmp_path, tolerance=1.0))
    assert problem == "unknown field of the case: tolerance"


def test_output_that_is_not_answered_fails(tmp_path: Path) -> None:
    path = copy(QKV, tmp_path)
    rewrite(path, out__weights=torch.zeros(3))
    assert run_case(path) == ["weights: not answered"]


def test_schedule_array_of_an_unknown_name_fails(tmp_path: Path) -> None:
    path = copy(SCHEDULE, tmp_path, kind="schedule")
    rewrite(path, out__snr=torch.zeros(1000))
    assert "snr: not answered" in run_case(path)


def test_tensor_of_an_unknown_group_fails(tmp_path: Path) -> None:
    path = copy(QKV, tmp_path)
    rewrite(path, extra__out=torch.zeros(3))
    assert run_case(path) == ["unknown tensor 'extra/out'"]


@pytest.mark.parametrize("change", [1e-3, float("nan"), float("inf")])
def test_one_perturbed_value_fails(tmp_path: Path, change: float) -> None:
    path = copy(QKV, tmp_path)
    want = load_file(path.with_suffix(".safetensors"))["out/out"]
    want.view(-1)[5] += change
    rewrite(path, out__out=want)
    (problem,) = run_case(path)
    assert problem.startswith(f"out: 1 of {want.numel()} values miss")


def test_another_shape_fails(tmp_path: Path) -> None:
    path = copy(QKV, tmp_path)
    want = load_file(path.with_suffix(".safetensors"))["out/out"]
    rewrite(path, out__out=want[:, :-1].contiguous())
    (problem,) = run_case(path)
    assert problem.startswith("out: shape")


def test_missing_tolerance_fails(tmp_path: Path) -> None:
    assert run_case(copy(QKV, tmp_path, atol={})) == ["no tolerance for out/out"]


def test_tolerance_without_a_value_fails(tmp_path: Path) -> None:
    problems = run_case(copy(QKV, tmp_path, atol={"out/out": 1e-5, "out/other": 1.0}))
    assert problems == ["other: has a tolerance but no value"]


@pytest.mark.parametrize("case", [QKV, SCHEDULE], ids=["component", "schedule"])
def test_case_without_its_tensors_fails(tmp_path: Path, case: Path) -> None:
    path = copy(case, tmp_path, kind=json.loads(case.read_text()).get("kind") or case.parent.name)
    path.with_suffix(".safetensors").unlink()
    assert run_case(path) != []


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_truncated_tensors_fail(tmp_path: Path, kept: int) -> None:
    path = copy(QKV, tmp_path)
    tensors = path.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:kept])
    assert run_case(path) != []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"config": 3}'])
def test_json_that_is_no_case_fails(tmp_path: Path, text: str) -> None:
    path = tmp_path / "components" / "broken.json"
    path.parent.mkdir()
    path.write_text(text)
    assert run_case(path) != []


@pytest.mark.slow
def test_last_line_counts_passed_and_failed(tmp_path: Path) -> None:
    copy(QKV, tmp_path / "any" / "where")
    copy(QKV, tmp_path / "broken", kind="sampler")
    result = run(tmp_path)
    assert result.stdout.splitlines()[-1] == "2 cases, 1 passed, 1 failed"
    assert result.stdout.startswith(f"FAIL {tmp_path / 'broken' / 'qkv_new.json'}: unknown kind 'sampler'")
    assert result.returncode == 1


@pytest.mark.slow
def test_all_passed_is_exit_0(tmp_path: Path) -> None:
    copy(QKV, tmp_path)
    result = run(tmp_path)
    assert (result.stdout, result.returncode) == ("1 case, 1 passed, 0 failed\n", 0)


@pytest.mark.slow
def test_empty_folder_is_a_failure_that_says_so(tmp_path: Path) -> None:
    result = run(tmp_path)
    first, last = result.stdout.splitlines()
    assert first == f"FAIL {tmp_path}: there is no case (NAME.json) under this folder"
    assert last == "0 cases, 0 passed, 0 failed"
    assert result.returncode == 1


@pytest.mark.slow
def test_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    assert run(tmp_path / "missing").returncode == 2
