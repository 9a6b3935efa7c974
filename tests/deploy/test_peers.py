"""`make test-peers` fails where it compares nothing: its conftest decides that, here on a stand-in for its folders."""

import os
from pathlib import Path

import pytest

from tests.warm import WORKER, run_warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(folder: Path, official: Path, test: str) -> tuple[int, str]:
    """Run one test of a folder of its own under the conftest of the peers; returns the status and what is printed."""
    (folder / "conftest.py").write_text((ROOT / "tests/peers/conftest.py").read_text())
    (folder / "test_it.py").write_text(f"import pytest\n{test}\n")
    arguments = ["-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    status, printed, errors = run_warm("pytest", arguments, os.environ | {"OFFICIAL": str(official)}, WORKER)
    return status, printed + errors


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A folder in the place of the official code."""
    (tmp_path / "official/guided_diffusion").mkdir(parents=True)
    (tmp_path / "official/guided_diffusion/script_util.py").touch()
    return tmp_path / "official"


def test_cases_that_were_compared_are_counted(tmp_path: Path, official: Path) -> None:
    status, printed = run(tmp_path, official, "def test_it(): pass")
    assert status == 0, printed
    assert "1 cases compared" in printed


@pytest.mark.parametrize(
    "test",
    ["", "def test_it(): pass\n@pytest.mark.skip\ndef test_other(): pass", "import no_such_peer\ndef test_it(): pass"],
    ids=["no case", "case that is skipped", "missing peer"],
)
def test_run_that_leaves_a_case_out_fails(tmp_path: Path, official: Path, test: str) -> None:
    status, printed = run(tmp_path, official, test)
    assert status != 0, printed


def test_missing_official_code_fails_and_says_what_names_it(tmp_path: Path) -> None:
    status, printed = run(tmp_path, tmp_path / "nowhere", "def test_it(): pass")
    assert status == 1
    assert "OFFICIAL=folder" in printed
