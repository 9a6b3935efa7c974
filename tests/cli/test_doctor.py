import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.conftest import RedisServer


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADM_PORT", "0")


def test_machine_before_its_first_start_is_in_order_and_nothing_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    checked = [line.split(":")[0].split(maxsplit=1)[1] for line in result.stdout.splitlines()]
    assert checked == [
        *("settings", "python", "torch", "data", "port", "open files", "redis", "store"),
        *("device", "precision", "compiler", "norms"),
        *("weights", "weights"),  # a line for each stack
    ]
    assert list(tmp_path.iterdir()) == []


def test_one_fault_is_status_1_with_all_other_checks_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADM_WEIGHTS", str(tmp_path))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert [line.split()[:2] for line in result.stdout.splitlines() if line.startswith("fault")] == [
        ["fault", "weights:"]
    ]


def test_wrong_setting_comes_first_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_PROT", "8123")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert result.stdout == "fault    settings: ADM_PROT: no such setting; the nearest is ADM_PORT\n"


@pytest.mark.parametrize("variable", ["ADM_REDIS_URL", "ADM_WEBHOOK_SECRET", "ADM_API_KEY"])
def test_json_for_support_has_findings_and_settings_without_secrets(
    monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, variable: str
) -> None:
    secret = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    values = {"ADM_REDIS_URL": f"unix://someone:{secret}@{redis_server.socket}", "ADM_API_KEY": secret}
    monkeypatch.setenv(variable, values.get(variable, f"whsec_{secret}"))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert report["findings"][0] == {
        "check": "settings",
        "verdict": "ok",
        "text": "all known and valid; adm config prints them",
    }
    assert "***" in report["settings"][variable]
    assert secret not in result.output
