"""`make test-peers` fails where it compares nothing: its conftest decides that, here on a stand-in for its folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each run imports torch

ROOT = Path(__file__).parents[2]


def run(folder: Path, official: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Run one test of a folder of its own under the conftest of the peers."""
    (folder / "conftest.py").write_text((ROOT / "tests/peers/conftest.py").read_text())
    (folder / "test_it.py").write_text(f"import pytest\n{test}\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)],
        check=False, capture_output=True, text=True, env=os.environ | {"OFFICIAL": str(official)},
    )  # fmt: skip


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A folder in the place of the official code."""
    (tmp_path / "official/guided_diffusion").mkdir(parents=True)
    (tmp_path / "official/guided_diffusion/script_util.py").touch()
    return tmp_path / "official"


def test_cases_that_were_compared_are_counted(tmp_path: Path, official: Path) -> None:
    ran = run(tmp_path, official, "def test_it(): pass")
    assert ran.returncode == 0, ran.stdout
    assert "1 cases compared" in ran.stdout


@pytest.mark.parametrize(
    "test",
    ["", "def test_it(): pass\n@pytest.mark.skip\ndef test_other(): pass", "import no_such_peer\ndef test_it(): pass"],
    ids=["no case", "case that is skipped", "missing peer"],
)
def test_run_that_leaves_a_case_out_fails(tmp_path: Path, official: Path, test: str) -> None:
    ran = run(tmp_path, official, test)
    assert ran.returncode != 0, ran.stdout


def test_missing_official_code_fails_and_says_what_names_it(tmp_path: Path) -> None:
    ran = run(tmp_path, tmp_path / "nowhere", "def test_it(): pass")
    assert ran.returncode == 1
    assert "OFFICIAL=folder" in ran.stdout + ran.stderr
