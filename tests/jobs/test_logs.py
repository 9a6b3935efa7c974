import subprocess
import sys

import pytest

PROGRAM = """
import structlog
from jobs import logs
from jobs.settings import Settings

logs.configure(Settings(log_format="{form}"))
secret = "somebody's " + "prompt"
try:
    raise ValueError("what happened")
except ValueError:
    structlog.get_logger().exception("failed")
"""


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_tracebacks_show_no_local_variables(form: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(form=form)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "ValueError: what happened" in shown
    assert "somebody's prompt" not in shown
