"""The contents of a built wheel: `adm up` serves the demo from it, without a checkout."""

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from os import environ
from pathlib import Path

import pytest

from jobs.settings import Settings
from standalone.embedded import with_free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
NOT_BUILT = shutil.ignore_patterns(".*", "build", "data", "runs", "tests", "bench", "docs", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `adm` of an environment that has the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_BUILT)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source"), str(folder / "source" / "client")], check=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    # a plain path entry, because .pth files in that folder are then not read, so the editable install is not found
    (found,) = (environment / "lib").glob("python*/site-packages")
    (found / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # as docs/serving.md says; what the wheels require must be among the libraries, because there is no index
    client, server = (str(*folder.glob(f"{name}-*.whl")) for name in ("adm_client", "adm_serve"))
    install = [*pip, "--python", str(python), "install", "--no-index", client, f"{server}[compute,embedded]"]
    subprocess.run(install, check=True)
    return environment / "bin" / "adm"


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
