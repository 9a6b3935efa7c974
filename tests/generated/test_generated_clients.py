"""Clients that others' generators make of the OpenAPI document compile, and post a job; `make test-clients` runs this.

The document is the one that the service serves. The generators are the programs in build/clients that
`make test-clients` installs there.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, address, client, fleet, service_settings, worker

__all__ = ["address", "client", "fleet", "service_settings", "worker"]

HERE, TOOLS = Path(__file__).parent, Path(__file__).parents[2] / "build" / "clients"
PYTHON, NODE_TOOLS = TOOLS / "bin", TOOLS / "node_modules" / ".bin"


def run(*command: str | Path, cwd: Path) -> str:
    environment = os.environ | {"PATH": f"{PYTHON}:{os.environ['PATH']}"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def document(client: httpx2.Client, fleet: ToyWorker, tmp_path: Path) -> Path:
    fleet.release()
    path = tmp_path / "openapi.json"
    path.write_bytes(client.get("/openapi.json").content)
    return path


def check(call: str, client: httpx2.Client) -> None:
    made: dict[str, Any] = json.loads(call)
    assert (made["status"], made["images"]) == ("completed", 1)
    job = client.get(f"/v1/jobs/{made['id']}").json()
    assert (job["request"]["class_label"], job["request"]["steps"]) == (4, 5)
    assert client.get(job["images"][0]["url"]).content == png(0)


def test_openapi_python_client_posts_a_job(client: httpx2.Client, document: Path, address: str, tmp_path: Path) -> None:
    options: list[str | Path] = ["--path", document, "--output-path", tmp_path / "adm_api", "--meta", "none"]
    run(PYTHON / "openapi-python-client", "generate", *options, cwd=tmp_path)
    run(PYTHON / "python", "-m", "compileall", "-q", "adm_api", cwd=tmp_path)
    shutil.copy2(HERE / "post_job.py", tmp_path)
    check(run(PYTHON / "python", "post_job.py", address, cwd=tmp_path), client)


def test_openapi_typescript_passes_tsc_and_posts_a_job(
    client: httpx2.Client, document: Path, address: str, tmp_path: Path
) -> None:
    for name in ("post_job.ts", "package.json"):
        shutil.copy2(HERE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    run(NODE_TOOLS / "openapi-typescript", document, "-o", "api.ts", "--default-non-nullable", "false", cwd=tmp_path)
    options = [
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--lib",
        "es2022,dom",
        "--noUncheckedIndexedAccess",
    ]
    run(NODE_TOOLS / "tsc", *options, "post_job.ts", cwd=tmp_path)
    check(run("node", "post_job.js", address, cwd=tmp_path), client)
