"""The findings of `adm doctor` about the machine and the weights, on real stacks that are broken in real ways."""

import json
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.worker.tiny_stack import write_tiny_stack
from worker.checks import check_machine, check_weights


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_tiny_stack(tmp_path)


def verdicts(settings: Settings) -> list[str]:
    return [each.verdict for each in check_weights(settings)]


def test_stack_that_can_be_read_is_in_order(stack: Path) -> None:
    (found,) = check_weights(Settings(weights=stack.parent))
    assert found.verdict == "ok"
    assert found.text.endswith("3 networks, pipelines demo, demo-uncond")


def test_file_of_weights_that_is_cut_short_is_a_fault_that_names_it(stack: Path) -> None:
    file = stack / "base.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    found = check_weights(Settings(weights=stack.parent))
    assert {each.verdict for each in found} == {"fault"}
    assert all("base.safetensors" in each.text for each in found)


def test_networks_that_do_not_fit_each_other_are_a_fault(stack: Path) -> None:
    manifest = json.loads((stack / "stack.json").read_text())
    (stack / "stack.json").write_text(json.dumps(manifest | {"classes": ["one", "two"]}))
    assert set(verdicts(Settings(weights=stack.parent))) == {"fault"}


def test_broken_stack_is_a_warning_until_it_is_asked_for(stack: Path) -> None:
    other = stack.parent / "other"
    other.mkdir()
    (other / "stack.json").write_text('{"pipelines": {"theirs": {}}}')
    assert verdicts(Settings(weights=stack.parent)) == ["warning", "ok"]
    assert verdicts(Settings(weights=stack.parent, pipelines=("demo", "theirs"))) == ["fault", "ok"]


def test_folder_without_stacks_is_a_fault_that_names_the_setting(tmp_path: Path) -> None:
    (found,) = check_weights(Settings(weights=tmp_path))
    assert found.verdict == "fault"
    assert "ADM_WEIGHTS" in found.text


def test_default_pipeline_that_no_worker_here_loads_is_a_warning(stack: Path) -> None:
    found = check_weights(Settings(weights=stack.parent, default_model="mine"))
    assert [each.verdict for each in found] == ["ok", "warning"]
    assert "ADM_DEFAULT_MODEL" in found[-1].text


def test_device_that_is_not_here_is_a_fault() -> None:
    (found,) = check_machine(Settings(device="cuda:99"))
    assert found.verdict == "fault"
    assert "ADM_DEVICE" in found.text
    assert found.text.endswith("; set it to auto, or to a device that is here")


def test_missing_compiler_is_a_fault_only_where_compiling_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    demanded, free = (
        next(found for found in check_machine(Settings(device="cpu", compile=each)) if found.check == "compiler")
        for each in ("yes", "auto")
    )
    assert (demanded.verdict, free.verdict) == ("fault", "ok")
    assert "ADM_COMPILE" in demanded.text
    assert "no-such-compiler" in demanded.text
