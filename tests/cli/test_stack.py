import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from standalone.supervisor import sole_owner


def test_up_on_a_busy_port_starts_nothing_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        monkeypatch.setenv("ADM_PORT", str(holder.getsockname()[1]))
        monkeypatch.setenv("ADM_DATA", str(tmp_path))
        result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "ADM_PORT" in result.stderr
    assert list((tmp_path / "run").glob("*.pid")) == []


def test_up_on_the_folder_of_a_running_stack_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADM_DATA", str(tmp_path))
    with sole_owner(tmp_path / "run"):
        result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert "ADM_DATA" in result.stderr
