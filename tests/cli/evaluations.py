"""Runs `adm evaluate` as a user does."""

import json
import os
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cli.main import app
from tests.warm import EVALUATION, run_warm

IMAGES = 40  # of each set
METRICS = {
    *("fid", "sfid", "inception_score", "kid"),
    *("precision", "recall", "density", "coverage", "authenticity"),
}


def run(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors; of a process of its own where a pipeline is loaded, which configures its logs."""
    if any(each.startswith("local:") for each in arguments):
        return run_warm("cli", ["evaluate", *arguments], os.environ, EVALUATION)
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def report(folder: Path, samples: str, reference: str) -> dict[str, Any]:
    target = folder / "report.json"
    status, _, stderr = run(str(folder / samples), "--against", str(folder / reference), "--json", str(target))
    assert status == 0, stderr
    read: dict[str, Any] = json.loads(target.read_text())
    return read


def refused(*arguments: str) -> str:
    status, printed, stderr = run(*arguments)
    assert (status, printed) == (1, "")
    assert stderr.startswith("adm: ")
    (line,) = (each for each in stderr.splitlines() if each.startswith("adm: "))
    assert stderr.endswith(f"{line}\n")
    return line
