"""adm generate, jobs, watch and cancel against the real service, whose worker draws grey pixels."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, address, body, client, fleet, service_settings, worker
from tests.worker.conftest import weights

__all__ = ["address", "client", "fleet", "service_settings", "weights", "worker"]

ROOT = Path(__file__).parents[2]
Adm = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the program as a process, because the toy worker in this process logs to the same output."""
    environment = {"PATH": os.environ["PATH"]} | variables
    command = (sys.executable, "-m", "cli", *command)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def adm(address: str, fleet: ToyWorker) -> Adm:
    fleet.release()
    return lambda *arguments: run(*arguments, "--url", address)


def test_generate_writes_the_images_and_prints_where(adm: Adm, client: httpx2.Client, tmp_path: Path) -> None:
    ran = adm("generate", "torus", "-n", "2", "--steps", "5", "--seed", "7", "--out", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr
    paths = [Path(line) for line in ran.stdout.splitlines()]
    assert [each.read_bytes() for each in paths] == [png(0), png(1)]
    request = client.get("/v1/jobs").json()["data"][0]["request"]
    assert (request["class_label"], request["steps"], request["seed"]) == (4, 5, 7)


def test_generate_in_json_prints_the_job_alone(adm: Adm, tmp_path: Path) -> None:
    ran = adm("generate", "4", "--json", "--out", str(tmp_path))
    job = json.loads(ran.stdout)
    assert (job["status"], len(job["images"]), ran.returncode) == ("completed", 1, 0)
    assert (tmp_path / f"{job['id']}-0.png").exists()


def test_unknown_class_is_reported_in_one_line_with_the_known_ones(adm: Adm, tmp_path: Path) -> None:
    ran = adm("generate", "cat", "--out", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("adm: 422: /class_label: unknown class 'cat'; there are: sphere, ")
    assert ran.stderr.count("\n") == 1


def test_unreachable_service_is_reported_in_one_line() -> None:
    ran = run("jobs", "--url", "http://127.0.0.1:9")
    message = "adm: no service answers at http://127.0.0.1:9; adm up starts one, --url names one\n"
    assert (ran.returncode, ran.stderr) == (1, message)


@pytest.mark.slow
def test_jobs_are_listed_watched_and_cancelled(adm: Adm, client: httpx2.Client, fleet: ToyWorker) -> None:
    fleet.hold()
    first, second = (client.post("/v1/jobs", json=body()).json()["id"] for _ in range(2))
    assert [line.split()[0] for line in adm("jobs").stdout.splitlines()] == [second, first]
    assert json.loads(adm("jobs", "--limit", "1", "--json").stdout)["id"] == second
    assert adm("cancel", first).stdout.split()[1] in ("cancelling", "cancelled")
    watched = adm("watch", first, "--json")
    assert [json.loads(line)["event"] for line in watched.stdout.splitlines()][-1] == "cancelled"
    assert (watched.returncode, watched.stderr) == (1, f"adm: job {first}: it is cancelled\n")
    fleet.release()
    assert adm("watch", second).stdout.split()[:3] == [second, "completed", "100%"]
    assert adm("cancel", second).returncode == 1
    assert adm("watch", "unknown").stderr == "adm: 404: no job 'unknown'\n"


def test_shell_completes_classes_and_models_from_the_service(adm: Adm, address: str) -> None:
    port = address.rpartition(":")[2]
    for words, found in (
        ("adm generate to", "torus"),
        ("adm generate --model demo-", "demo-uncond"),
        ("adm gen", "generate"),
    ):
        last = str(len(words.split()) - 1)
        asked = {"ADM_PORT": port, "_ADM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": last}
        program = "import sys; sys.argv = ['adm']; from cli.main import app; app(prog_name='adm')"
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=asked, capture_output=True, text=True, check=False
        )
        assert found in ran.stdout.split(), ran.stderr


@pytest.mark.slow
def test_generate_here_needs_no_service(weights: Path, tmp_path: Path) -> None:
    settings = {"ADM_WEIGHTS": str(weights), "ADM_DATA": str(tmp_path), "ADM_DEVICE": "cpu", "ADM_MAX_ROWS": "4"}
    command = ["generate", "torus", "-n", "2", "--steps", "2", "--seed", "5", "--no-upsample", "--local"]
    ran = run(*command, "--out", tmp_path / "out", **settings)
    assert ran.returncode == 0, ran.stderr
    paths = [Path(line) for line in ran.stdout.splitlines()]
    assert [each.name for each in paths] == ["5-0.png", "5-1.png"]
    for each in paths:
        with Image.open(each) as picture:
            assert picture.size == (8, 8)
