"""`make install` without python3-venv, and once it is installed. A script stands in for Python; pip is not run."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAVES_NO_PIP = """#!/bin/sh
case "$*" in
-c*) exit 0 ;;
"-m venv"*) mkdir -p .venv/bin; printf '#!/bin/sh\\nexit 1\\n' > .venv/bin/python; chmod +x .venv/bin/python; exit 1 ;;
esac
"""
WORKS = """#!/bin/sh
case "$*" in
-c*) exit 0 ;;
"-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; printf '#!/bin/sh\\necho "$*" >> calls\\n' > .venv/bin/python
    chmod +x .venv/bin/python ;;
*) exit 1 ;;
esac
"""


def make_install(folder: Path, python: str) -> "subprocess.CompletedProcess[str]":
    """Run `make install` in a folder with the project's Makefile. python: the script that stands in for Python."""
    norms = "models/networks/_channel_norm.c"
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "client/pyproject.toml", norms):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    program = folder / "python"
    program.write_text(python)
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "install", f"PYTHON={program}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_missing_venv_package_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    ended = make_install(tmp_path, LEAVES_NO_PIP)
    assert ended.returncode != 0
    assert "sudo apt-get install python3-venv" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_environment_without_pip_is_made_again(tmp_path: Path) -> None:
    left = tmp_path / ".venv" / "bin" / "python"
    left.parent.mkdir(parents=True)
    left.write_text("#!/bin/sh\nexit 1\n")
    left.chmod(0o755)
    ended = make_install(tmp_path, WORKS)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / ".venv" / ".installed").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if call.startswith("-m pip install")] == calls[-2:]
    make_install(tmp_path, LEAVES_NO_PIP)
    assert (tmp_path / "calls").read_text().splitlines() == calls, "what is installed stays"
