import re
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


CALLERS = """
import logging
import structlog
from jobs import logs
from jobs.settings import Settings

logs.configure(Settings(log_format="{form}"))
path = "/v1/jobs/" + chr(27) + "[2J" + chr(0x9b) + "31m" + chr(10) + "forged" + chr(0x202e) + "é"
structlog.get_logger().info("request", path=path)
logging.getLogger("library").warning("odd request: %s", path)
structlog.get_logger().info("request", path="a" * 30000)
try:
    raise ValueError(path)
except ValueError:
    structlog.get_logger().exception("failed")
"""


@pytest.mark.parametrize("form", ["pretty", "json"])
def test_what_callers_choose_cannot_steer_a_terminal_nor_fill_the_log(form: str) -> None:
    command = [sys.executable, "-c", CALLERS.format(form=form)]
    coloured = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    shown = re.sub(r"\x1b\[\d+m", "", coloured)
    assert shown.replace("\n", "").isprintable()
    assert sum(line.startswith("forged") for line in shown.splitlines()) <= 1  # in the traceback, whose lines stay
    assert shown.count("\\x1b[2J") == 3
    assert "aaa..." in shown
    assert len(shown) < 4000
