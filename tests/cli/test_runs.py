"""`adm runs` reads runs from their folders alone."""

from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from tests.runfolder import write_run


def test_runs_are_compared_by_field_and_at_their_last_common_step(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", steps=60)
    result = CliRunner().invoke(app, ["runs", "compare", str(one), str(other)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[:2] == ["optimiser.steps: 100 | 60", "at step 60:"]
    assert "  loss: 0.0166667 | 0.0166667" in lines


def test_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["runs", "show", str(tmp_path)])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "a training run?" in result.output
