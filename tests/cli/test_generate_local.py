"""`adm generate --local` beside the same command with a service: bytes, document, and what only a service honours."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adm_client import JobState
from tests.cli.test_jobs import ROOT, run
from tests.service.conftest import running_service
from tests.worker.conftest import weights
from tests.worker.programs import running_worker

__all__ = ["weights"]

pytestmark = pytest.mark.slow

ORDER = ("generate", "torus", "-n", "2", "--steps", "3", "--sampler", "ddpm", "--guidance-scale", "2", "--seed", "5")
OF_PLACE = {
    "id",
    "created_at",
    "started_at",
    "ended_at",
    "expires_at",
    "usage",
    "images",
}  # of the run, not of the image
Made = tuple[dict[str, Any], list[Path]]


@pytest.fixture(scope="module")
def environment(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a command whose numerics are the worker's."""
    return {
        "ADM_WEIGHTS": str(weights),
        "ADM_DATA": str(tmp_path_factory.mktemp("local")),
        "ADM_DEVICE": "cpu",
        "ADM_MAX_ROWS": "8",
        "ADM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def served(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a worker for the tiny stack."""
    folder = tmp_path_factory.mktemp("served")
    with running_worker(folder, weights) as settings, running_service(settings) as (address, _, _):
        yield address


def made(ran: "subprocess.CompletedProcess[str]") -> Made:
    """The document from stdout, and the paths from stderr."""
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    return json.loads(line), [Path(each) for each in ran.stderr.splitlines() if each.endswith(".png")]


@pytest.fixture(scope="module")
def local(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(run(*ORDER, "--local", "--json", "--out", tmp_path_factory.mktemp("here"), **environment))


def test_local_images_are_the_bytes_that_a_service_of_the_same_numerics_gives(
    local: Made, served: str, tmp_path: Path
) -> None:
    """Pixels and text chunks are equal; the documents differ only in ids, times and addresses."""
    job, paths = local
    there, others = made(run(*ORDER, "--json", "--url", served, "--out", tmp_path))
    assert job["numerics"] == there["numerics"]
    assert [each.read_bytes() for each in paths] == [each.read_bytes() for each in others]
    assert job.keys() == there.keys()
    assert {name: job[name] for name in job.keys() - OF_PLACE} == {name: there[name] for name in job.keys() - OF_PLACE}
    assert job["usage"]["steps"] == there["usage"]["steps"]
    assert job["usage"]["device_seconds"] > 0
    for mine, other, path in zip(job["images"], there["images"], paths, strict=True):
        assert mine | {"url": ""} == other | {"url": ""}
        assert mine["url"] == path.resolve().as_uri()


def test_local_document_is_a_job_that_never_expires(local: Made) -> None:
    job, paths = local
    assert (job["id"], job["status"], job["expires_at"]) == ("5", "completed", None)
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]
    assert [each.name for each in paths] == ["5-0.png", "5-1.png"]
    assert JobState.model_validate(job).status == "completed"


def test_service_restores_the_request_of_a_local_image(local: Made, served: str) -> None:
    job, paths = local
    answer = httpx2.post(f"{served}/v1/requests/from-image", content=paths[1].read_bytes(), timeout=60).json()
    wanted = {"seed": 5, "steps": 3, "sampler": "ddpm", "guidance_scale": 2, "first_index": 1}
    assert {name: answer[name] for name in wanted} == wanted
    again = httpx2.post(f"{served}/v1/jobs", json=answer, headers={"Prefer": "wait=60"}, timeout=90).json()
    assert again["images"][0]["sha256"] == job["images"][1]["sha256"]


def test_local_command_shows_a_bar_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "cli", *ORDER, "--local", "--no-upsample", "--out", str(tmp_path)]
    given = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "80"} | environment
    process = subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=end, text=True)
    os.close(end)
    shown = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while chunk := screen.read(4096):
                shown += chunk
        except OSError:  # how a terminal ends on Linux
            pass
    printed, _ = process.communicate()
    assert process.returncode == 0, shown
    assert "━".encode() in shown
    assert b" %" in shown
    assert [Path(each).name for each in printed.splitlines()] == ["5-0.png", "5-1.png"]


def test_local_command_that_is_interrupted_says_so_in_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", *ORDER, "--local", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores it, and so would we
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread needs it
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("loading ")
    process.send_signal(signal.SIGINT)
    printed, stderr = process.communicate()
    assert (process.returncode, printed) == (130, "")
    assert stderr == f"adm: stopped; the images that were finished are in {tmp_path}\n"


@pytest.mark.parametrize("option", [("--url", "http://127.0.0.1:9"), ("--priority", "high")])
def test_option_that_only_a_service_honours_is_refused_with_local(option: tuple[str, str], tmp_path: Path) -> None:
    ran = run(*ORDER, "--local", *option, "--out", tmp_path / "out")
    message = f"adm: {option[0]}: leave it out with --local, which uses no service\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", message)
    assert not (tmp_path / "out").exists()
