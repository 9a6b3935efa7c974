"""`adm evaluate service:PIPELINE`: what a real service makes is scored, whatever is killed in the middle."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from cli.generated_samples import of_seeds
from evaluation.feature_files import JOURNAL
from jobs.settings import Settings
from tests.service.conftest import running_service
from tests.waiting import eventually
from tests.warm import EVALUATION, WarmProgram, run_warm
from tests.worker.programs import running_worker

ROOT = Path(__file__).parents[2]
REFERENCE = "shapes?images=40"
IMAGES = 40
PIPELINE = f"demo?images={IMAGES}&steps=2&upsample=no"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a Redis of this module, with a worker for the demo stack."""
    folder = tmp_path_factory.mktemp("common")
    with running_worker(folder, ROOT / "weights", pipelines=("demo",)) as settings:
        yield settings


class Evaluating:
    """A running `adm evaluate` of one folder."""

    def __init__(self, settings: Settings, folder: Path, samples: str, *arguments: str) -> None:
        self.report, self.folder = folder / "report.json", folder / "data" / "evaluate"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
        given = {
            "ADM_DATA": str(folder / "data"),
            "ADM_WEIGHTS": str(settings.weights),
            "ADM_DEVICE": "cpu",
            "ADM_MAX_ROWS": "8",
            "ADM_THREADS": "1",
        }
        command = ["evaluate", samples, "--against", REFERENCE, "--json", str(self.report), *arguments]
        self._kept_before = self._kept
        self._log = folder / "evaluate.log"
        with self._log.open("a") as log:
            self.process = WarmProgram("cli", command, inherited | given, log.fileno(), EVALUATION)

    @property
    def _kept(self) -> int:
        """Bytes of the journals of what is kept."""
        return sum(each.stat().st_size for each in self.folder.glob(f"*/{JOURNAL}"))

    def wait_kept(self) -> None:
        """Wait until this process has kept a chunk's features, and the evaluation is not at its end."""
        eventually(lambda: self._kept > self._kept_before or self.process.poll() is not None, "features are kept")
        assert self.process.poll() is None, self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> dict[str, Any]:
        assert self.process.wait() == 0, self._log.read_text()
        report: dict[str, Any] = json.loads(self.report.read_text())
        return report


@pytest.fixture(scope="module")
def in_process(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the same images, made without a service."""
    return Evaluating(settings, tmp_path_factory.mktemp("local"), f"local:{PIPELINE}").end()


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["samples"]["made"]["numerics"] == wanted["samples"]["made"]["numerics"]
    assert found["samples"]["sha256"] == wanted["samples"]["sha256"]
    values, others = ({name: each["value"] for name, each in report["metrics"].items()} for report in (found, wanted))
    assert values == pytest.approx(others, rel=1e-4)  # of the same pixels; threads round the judge's sums otherwise


@pytest.mark.process
@pytest.mark.slow
def test_service_is_scored_as_this_machine_and_keeps_nothing(
    settings: Settings, tmp_path: Path, in_process: dict[str, Any]
) -> None:
    with running_service(settings) as (address, _, _):
        found = Evaluating(settings, tmp_path, f"service:{PIPELINE}", "--url", address).end()
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).json()["data"] == []
    assert_equal(found, in_process)
    assert found["samples"]["source"] == f"service:{PIPELINE}"
    assert len(set(found["samples"]["made"]["jobs"])) == 10  # one a class
    assert found["samples"]["made"]["parameters"]["steps"] == 2


@pytest.mark.process
@pytest.mark.slow
def test_killed_evaluation_continues_with_what_it_kept_and_a_service_that_dies_is_waited_for(
    settings: Settings, tmp_path: Path, in_process: dict[str, Any]
) -> None:
    source = f"service:{PIPELINE}"
    with ExitStack() as stack:
        first = ExitStack()
        address, process, _ = first.enter_context(running_service(settings))
        killed = Evaluating(settings, tmp_path, source, "--url", address)
        killed.wait_kept()
        killed.kill()
        again = Evaluating(settings, tmp_path, source, "--url", address)
        again.wait_kept()
        process.kill()
        first.close()
        stack.enter_context(running_service(settings, ADM_PORT=str(urlsplit(address).port)))
        assert_equal(again.end(), in_process)


class Refusing(BaseHTTPRequestHandler):
    """Knows no key, and remembers those that it was shown."""

    shown: list[str | None]

    def do_GET(self) -> None:
        self.shown.append(self.headers["Authorization"])
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.process
def test_key_is_shown_as_a_bearer_token_and_not_printed(tmp_path: Path) -> None:
    Refusing.shown = []
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        command = ["evaluate", "service:demo", "--against", REFERENCE, "--url"]
        status, printed, stderr = run_warm(
            "cli",
            [*command, f"http://127.0.0.1:{server.server_port}"],
            os.environ | {"ADM_DATA": str(tmp_path), "ADM_API_KEY": "s3cret"},
            EVALUATION,
        )
        server.shutdown()
    assert Refusing.shown == ["Bearer s3cret"]
    assert status == 1
    assert "answers 401" in stderr
    assert "s3cret" not in printed + stderr


@pytest.mark.parametrize(
    ("source", "sources"),
    [
        ("local:demo", ["local:demo?seed=0", "local:demo?seed=1"]),
        ("local:demo?seed=5&steps=2", ["local:demo?steps=2&seed=5", "local:demo?steps=2&seed=6"]),
        ("service:demo?steps=2&seed=5", ["service:demo?steps=2&seed=5", "service:demo?steps=2&seed=6"]),
    ],
)
def test_seeds_follow_the_sources_own(source: str, sources: list[str]) -> None:
    assert [each for _, each in of_seeds(source, 2)] == sources
    assert [each for _, each in of_seeds(source, 1)] == [source]


def test_pictures_have_no_seeds() -> None:
    with pytest.raises(ValueError, match=r"--seeds 2: pictures has no seed; "):
        list(of_seeds("pictures", 2))
