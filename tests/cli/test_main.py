import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import SPIN_COUNT, app
from jobs.settings import Settings

ROOT = Path(__file__).parents[2]


def test_config_prints_every_setting_with_its_value_and_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_PORT", "8123")
    result = CliRunner().invoke(app, ["config"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == len(Settings.model_fields)
    assert any(line.startswith("ADM_PORT=8123  # environment:") for line in lines)
    assert any(line.startswith("ADM_HOST=127.0.0.1  # default:") for line in lines)


@pytest.mark.parametrize("command", ["config", "up", "demo"])
def test_wrong_setting_ends_a_command_with_status_2_and_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ADM_PROT", "8123")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2
    assert result.stderr == "adm: ADM_PROT: no such setting; the nearest is ADM_PORT\n"


def test_importing_the_command_line_imports_no_program_so_that_a_container_needs_only_its_own() -> None:
    plain = {"cli", "vocabulary"}  # in every container image; contain nothing but names
    ours = {each.parent.name for each in ROOT.glob("*/__init__.py")} - plain
    heavy = ours | {"torch", "fastapi", "redis", "pydantic", "httpx2", "PIL", "rq"}
    code = f"import sys, cli.main; print(*sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_supervisor_needs_no_torch() -> None:
    code = "import sys, standalone.embedded, standalone.demo; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, f"GOMP_SPINCOUNT = '{SPIN_COUNT}'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "passive"}, "GOMP_SPINCOUNT = '0'"),
    ],
    ids=["no variable", "count", "policy"],
)
def test_torch_threads_spin_as_the_environment_says_or_briefly_by_default(
    tmp_path: Path, variables: dict[str, str], shown: str
) -> None:
    own = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    run = subprocess.run(
        [sys.executable, "-m", "cli", "sample", "--local", "--model", "none-such", "--out", str(tmp_path / "out.npz")],
        cwd=ROOT,
        env=inherited | variables | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown in run.stderr
