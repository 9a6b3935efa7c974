import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


def test_unreachable_service_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    out = str(tmp_path / "samples.npz")
    result = CliRunner().invoke(app, ["sample", "--out", out, "--count", "5", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"adm: --url http://127.0.0.1:{port}: the service does not answer" in result.stderr
    assert "--local" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_port_of_the_environment_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    monkeypatch.setenv("ADM_PORT", str(port))
    result = CliRunner().invoke(app, ["sample", "--out", str(tmp_path / "samples.npz"), "--count", "5"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"adm: --url http://127.0.0.1:{port}: the service does not answer" in result.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://", "http://[x"])
def test_invalid_url_is_reported_in_one_line(tmp_path: Path, url: str) -> None:
    out = str(tmp_path / "samples.npz")
    result = CliRunner().invoke(app, ["sample", "--out", out, "--count", "5", "--url", url])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"adm: --url: {url!r} ")
