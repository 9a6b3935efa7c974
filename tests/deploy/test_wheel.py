"""The contents of a built wheel: `adm up` serves the demo from it, without a checkout."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterable
from email.parser import BytesParser
from importlib.metadata import Distribution, distribution
from os import environ
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.settings import Settings
from standalone.embedded import with_free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
NOT_BUILT = shutil.ignore_patterns(".*", "build", "data", "runs", "tests", "bench", "docs", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `adm` of a fresh environment: the wheels, and of this one's libraries those that they require."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_BUILT)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source"), str(folder / "source" / "client")], check=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    client, server = (str(*folder.glob(f"{name}-*.whl")) for name in ("adm_client", "adm_serve"))
    (found,) = (environment / "lib").glob("python*/site-packages")
    for each in required([*requires(client), *requires(server, "compute", "embedded")]):
        link(each, found)
    # as docs/serving.md says; all that the wheels require must be among the libraries, because there is no index
    install = [*pip, "--python", str(python), "install", "--no-index", client, f"{server}[compute,embedded]"]
    subprocess.run(install, check=True)
    return environment / "bin" / "adm"


def requires(wheel: str, *extras: str) -> list[Requirement]:
    """The requirements of a wheel with extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        texts = BytesParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])
    return in_force(texts, extras)


def in_force(texts: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """The requirements among these that apply to this machine, with any of the extras or without."""
    found = [Requirement(each) for each in texts]
    wanted = ("", *extras)
    return [each for each in found if each.marker is None or any(each.marker.evaluate({"extra": x}) for x in wanted)]


def required(requirements: Iterable[Requirement]) -> list[Distribution]:
    """The installed distributions that requirements name, and those that these require in turn."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}
    waiting = list(requirements)
    while waiting:
        each = waiting.pop()
        key = canonicalize_name(each.name), frozenset(each.extras)
        if key not in found:
            found[key] = distribution(each.name)
            waiting += in_force(found[key].requires or [], each.extras)
    return list({name: each for (name, _), each in found.items()}.values())


def link(library: Distribution, folder: Path) -> None:
    """Make the top-level modules and folders of an installed distribution visible in another environment."""
    for name in {file.parts[0] for file in library.files or []} - {"..", "__pycache__"}:
        if not (folder / name).exists():
            (folder / name).symlink_to(str(library.locate_file(name)))


@pytest.mark.slow
def test_environment_has_no_library_that_the_wheels_do_not_require(program: Path) -> None:
    python = program.parent / "python"
    found = subprocess.run([python, "-c", "import torch, pytest"], cwd="/", capture_output=True, text=True, check=False)
    assert "No module named 'pytest'" in found.stderr


@pytest.mark.slow
@pytest.mark.process
def test_wheel_serves_the_demo_from_any_folder(program: Path, tmp_path: Path) -> None:
    port = with_free_port(Settings(port=0)).port
    variables = {name: value for name, value in environ.items() if not name.startswith(("ADM_", "PYTHON"))}
    few = {"ADM_PORT": str(port), "ADM_MAX_ROWS": "2"}  # rows, whose probes take most of a start
    process = subprocess.Popen([str(program), "up"], cwd=tmp_path, env=variables | few)
    try:

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz?workers=true", timeout=60) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        eventually(is_ready, "the worker is ready")
        for path in ("/", "/static/js/main.js", "/docs"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                assert answer.status == 200
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/jobs",
            json.dumps({"class_label": "torus", "steps": 2, "upsample": False}).encode(),
            {"Content-Type": "application/json", "Prefer": "wait=60"},
        )
        with urllib.request.urlopen(request, timeout=90) as answer:
            assert json.load(answer)["status"] == "completed"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(300)
    assert not (tmp_path / "weights").exists()
