"""`adm up` with everything real, driven as a user drives it: a terminal's signals, HTTP, kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from jobs.settings import Settings
from standalone.embedded import with_free_port
from tests.standalone.programs import alive, written_pid
from tests.waiting import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.process]


class Programs:
    """A running `adm up` whose worker finds no files of weights, so that it needs no time to load them."""

    def __init__(self, process: subprocess.Popen[str], data: Path, port: int) -> None:
        self.process, self.data, self.port = process, data, port
        self.lines: list[str] = []
        self._readers = [Thread(target=self._read, args=(stream,)) for stream in (process.stdout, process.stderr)]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str]) -> None:
        self.lines.extend(stream)

    def wait_line(self, text: str) -> None:
        eventually(lambda: any(text in line for line in list(self.lines)), f"a line with {text!r}")

    def status(self, path: str) -> int:
        """HTTP status of a GET; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def get(self, path: str) -> Any:
        """The answer of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return json.load(response)

    def pid(self, name: str) -> int | None:
        """A child's pid, as its file says."""
        return written_pid(self.data / "run" / f"{name}.pid")

    def end(self) -> None:
        """Wait for the end of the process and of what it wrote."""
        self.process.wait(timeout=PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join()


@contextmanager
def up(
    tmp_path: Path, weights: Path | None = None, expected: str = "http://127.0.0.1:", **variables: str
) -> Iterator[Programs]:
    """Runs `adm up` with a folder and a port of its own; yields once it has printed a line with `expected`."""
    port = with_free_port(Settings(port=0)).port
    if weights is None:
        weights = tmp_path / "weights"
        (weights / "demo").mkdir(parents=True)
        shutil.copy(ROOT / "weights/demo/stack.json", weights / "demo")
    defaults = {"ADM_PORT": str(port), "ADM_DATA": str(tmp_path / "data"), "ADM_WEIGHTS": str(weights)}
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "up"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("ADM_")} | defaults | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        programs = Programs(process, tmp_path / "data", port)
        try:
            programs.wait_line(expected)
            yield programs
        finally:
            process.kill()
            programs.end()
            print(*programs.lines)  # shown by a failure


def test_service_stays_up_beside_a_worker_that_refuses_its_weights(tmp_path: Path) -> None:
    with up(tmp_path) as programs:
        assert programs.status("/readyz") == 200
        assert programs.status("/readyz?workers=1") == 503
        assert programs.get("/v1/workers")["data"] == []
        refusals = [line for line in programs.lines if line.startswith("worker ")]
        assert any(str(tmp_path / "weights") in line for line in refusals)
        assert not any("Traceback" in line for line in programs.lines)
        assert any("worker ended with status" in line for line in programs.lines)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ADM_HOST": "0.0.0.0"}, "ADM_HOST: 0.0.0.0 is not loopback"),
        ({"ADM_PIPELINES": "none"}, "ADM_PIPELINES: "),
        ({"ADM_DATA": "pyproject.toml/data"}, "ADM_DATA: pyproject.toml/data cannot be used"),
        ({"ADM_WORKER_NAME": "a b"}, "ADM_WORKER_NAME: "),
    ],
)
def test_settings_that_cannot_work_end_the_stack_with_the_line(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    given = {"ADM_PORT": "0", "ADM_DATA": str(tmp_path / "data")} | variables
    ended = subprocess.run(
        [sys.executable, "-m", "cli", "up"],
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("ADM_")} | given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    last = ended.stderr.splitlines()[-1]
    assert (ended.returncode in (1, 2), last.startswith("adm: "), message in last) == (True, True, True), ended.stderr


def test_default_pipeline_that_no_worker_loads_is_reported(tmp_path: Path) -> None:
    with up(tmp_path, expected="ADM_DEFAULT_MODEL: 'demo'", ADM_PIPELINES="demo-uncond"):
        pass


def test_killed_service_is_back_on_its_port_under_a_new_pid(tmp_path: Path) -> None:
    with up(tmp_path) as programs:
        before = programs.pid("service")
        assert before is not None
        os.kill(before, signal.SIGKILL)
        eventually(lambda: programs.pid("service") not in (None, before), "a new service runs")
        eventually(lambda: programs.status("/readyz") == 200, "it is ready")


def test_service_recovers_by_itself_when_redis_was_killed(tmp_path: Path) -> None:
    with up(tmp_path) as programs:
        service, redis = programs.pid("service"), programs.pid("redis")
        assert redis is not None
        os.kill(redis, signal.SIGKILL)
        eventually(lambda: programs.pid("redis") not in (None, redis), "a new Redis runs")
        eventually(lambda: programs.status("/readyz") == 200, "it is ready")
        assert programs.pid("service") == service


def test_ctrl_c_stops_all_in_order_and_leaves_no_process_and_no_pid_file(tmp_path: Path) -> None:
    with up(tmp_path) as programs:
        pids = [pid for pid in map(programs.pid, ("service", "redis")) if pid is not None]
        assert len(pids) == 2
        programs.process.send_signal(signal.SIGINT)
        programs.end()
        assert programs.process.returncode == 0
        stops = [line.split("stopping ")[1].partition(":")[0] for line in programs.lines if "| stopping " in line]
        assert stops == ["service", "worker", "redis"]
        assert not any(alive(pid) for pid in pids)
        assert list((programs.data / "run").glob("*.pid")) == []
        assert not any("killing it" in line for line in programs.lines)


def test_stack_whose_worker_is_still_loading_stops_at_once(tmp_path: Path) -> None:
    with up(tmp_path, weights=ROOT / "weights", expected='"loading"') as programs:
        programs.process.send_signal(signal.SIGTERM)
        programs.end()
        assert programs.process.returncode == 0
        assert any("its networks were loaded" in line for line in programs.lines), programs.lines
        assert not any("killing it" in line for line in programs.lines)
