"""Compare ours with other implementations, on random settings that each run draws for itself.

OFFICIAL is the folder of guided-diffusion's checkout; PEERS_SEED repeats a run, whose last line prints its seed.
"""

import os
import random
import sys
from pathlib import Path

import pytest
import torch

SEED = int(os.environ.get("PEERS_SEED") or random.randrange(2**32))
# torchvision's operators are built for another torch. Its import needs these two to be defined; nothing runs them.
OPERATORS = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytest_configure() -> None:
    folder = Path(os.environ.get("OFFICIAL") or "build/official")
    if not (folder / "guided_diffusion" / "script_util.py").is_file():
        where = "OFFICIAL=folder names the checkout of github.com/openai/guided-diffusion"
        pytest.exit(f"{folder} has no guided_diffusion; {where}", returncode=1)
    sys.path.insert(0, str(folder))


def num_compared(reporter: pytest.TerminalReporter) -> int:
    return sum(len(reporter.stats.get(outcome, ())) for outcome in ("passed", "failed"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert isinstance(reporter, pytest.TerminalReporter)
    if num_compared(reporter) == 0 or "skipped" in reporter.stats:  # a peer that is missing would be passed over
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    cases = num_compared(terminalreporter)
    terminalreporter.write_line(f"{cases} cases compared; PEERS_SEED={SEED} draws the same again")


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of one case, a function of the seed and of the case's name."""
    torch.manual_seed(SEED)
    return random.Random(f"{SEED}/{request.node.name}")
