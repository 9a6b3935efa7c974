from pathlib import Path

import pytest
import torch

from engine.compiling import Compiler
from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from models.stack import load_stack
from tests.engine.test_compiling import needs_compiler
from tests.models.samples import write_stack
from worker import compiling
from worker.assembling import assemble
from worker.compiling import choose_compiler

CPU = torch.device("cpu")


def asking(answer: str, data: Path) -> Settings:
    return Settings.model_validate({"data": data, "compile": answer})


@pytest.mark.parametrize("answer", ["auto", "no"])
def test_a_start_that_was_not_asked_to_wait_does_not_compile(tmp_path: Path, answer: str) -> None:
    stack = load_stack(write_stack(tmp_path / "tiny"))
    assert choose_compiler(asking(answer, tmp_path), CPU, [stack], "fp32") is None
    assert not (tmp_path / "compiled").exists()


def test_without_a_compiler_auto_is_eager_and_yes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_compiler(asking("auto", tmp_path), CPU, [], "fp32") is None
    with pytest.raises(
        SettingsError, match=r"^ADM_COMPILE: there is no C\+\+ compiler .*no-such-compiler was not found$"
    ):
        choose_compiler(asking("yes", tmp_path), CPU, [], "fp32")


@pytest.mark.slow  # the estimate imports half of torch
@needs_compiler
def test_networks_that_the_memory_does_not_suffice_for_are_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = load_stack(write_stack(tmp_path / "tiny"))
    monkeypatch.setattr(compiling, "free_bytes", lambda device: 2**20)  # as of a full machine
    monkeypatch.setattr(Compiler, "is_warm", True)  # otherwise `auto` stays eager before it looks at the memory
    assert choose_compiler(asking("auto", tmp_path), CPU, [stack], "fp32") is None
    with pytest.raises(SettingsError, match=r"^ADM_COMPILE: compiled networks need .* 0\.0 GiB are free$"):
        choose_compiler(asking("yes", tmp_path), CPU, [stack], "fp32")


def test_other_devices_are_not_compiled_for(tmp_path: Path) -> None:
    cuda = torch.device("cuda", 0)
    assert choose_compiler(asking("auto", tmp_path), cuda, [], "fp32") is None
    with pytest.raises(SettingsError, match="on a CPU only, not on cuda:0"):
        choose_compiler(asking("yes", tmp_path), cuda, [], "fp32")


@pytest.mark.slow
def test_compiler_that_makes_wrong_code_is_not_used_by_auto_and_refused_by_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No real compiler miscompiles the same function on every machine, so the code is made wrong here."""
    stack = load_stack(write_stack(tmp_path / "tiny"))
    monkeypatch.setattr(Compiler, "is_warm", True)  # otherwise `auto` stays eager before it compares
    monkeypatch.setattr(
        Compiler, "compile", lambda self, function, **_: lambda *inputs, **named: function(*inputs, **named) * 2
    )
    asked = asking("auto", tmp_path).model_copy(update={"max_rows": 2, "precision": "fp32"})
    loaded = assemble(asked, CPU, "cpu-0", tuple(stack.pipelines), [stack])
    assert "compiled by" not in loaded.engine.stages["tiny/base"].networks.mode
    with pytest.raises(SettingsError, match=r"^ADM_COMPILE: the base network, compiled by .*; set it to no$"):
        assemble(asked.model_copy(update={"compile": "yes"}), CPU, "cpu-0", tuple(stack.pipelines), [stack])
