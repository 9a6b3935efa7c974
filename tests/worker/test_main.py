import json
import signal
from pathlib import Path
from threading import Timer

import pytest
from structlog.testing import capture_logs

from jobs.contract.errors import UnavailableError
from jobs.contract.job import JobStatus
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.engine.test_compiling import needs_compiler
from tests.jobs.samples import DEMO
from tests.waiting import eventually
from tests.worker.names import owned
from tests.worker.programs import Client, Start
from worker import main
from worker.inbox import Inbox
from worker.stopping import InterruptedStartError, Stopping


def test_redis_that_stays_unavailable_is_one_line_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "START_PATIENCE_SECONDS", 0.2)
    client = RedisServer(tmp_path).client()
    with pytest.raises(UnavailableError, match=r"\AADM_REDIS_URL: .*\Z"):
        main.open_inbox(Inbox(client, Settings(data=tmp_path), owned("cpu-0"), [DEMO]), Stopping())


def test_wait_for_redis_ends_when_the_worker_is_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "START_PATIENCE_SECONDS", 600)
    stopping, client = Stopping(), RedisServer(tmp_path).client()
    timer = Timer(0.3, stopping.set)
    timer.start()
    with pytest.raises(InterruptedStartError):
        main.open_inbox(Inbox(client, Settings(data=tmp_path), owned("cpu-0"), [DEMO]), stopping)
    timer.join()


@pytest.mark.slow
def test_worker_that_is_stopped_while_it_waits_for_redis_ends_with_status_0(start: Start, tmp_path: Path) -> None:
    worker = start(ADM_REDIS_URL=f"unix://{tmp_path / 'nobody.sock'}", ADM_PIPELINES="demo-uncond")
    eventually(lambda: '"redis_unavailable"' in worker.output, "it waits")
    assert "nobody.sock" in worker.output  # the address that does not answer
    assert worker.kill(signal.SIGTERM) == 0
    assert "Traceback" not in worker.output
    last = json.loads(worker.output.splitlines()[-1])
    assert (last["event"], last["before"]) == ("stopped", "Redis was available")


def test_worker_that_is_stopped_before_it_loads_does_not_begin_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Stopping):
        def listen(self) -> None:
            self.set()

    monkeypatch.setattr(main, "Stopping", Told)  # a signal between two statements, which no process can time
    monkeypatch.setattr(main, "use_host", lambda settings: None)  # sets limits of the whole process
    with capture_logs() as logs:
        main.run(Settings(data=tmp_path, weights=tmp_path / "nowhere", device="cpu"))  # loading would fail
    assert [each["event"] for each in logs] == ["loading", "stopped"]


@pytest.mark.slow
def test_first_line_of_a_worker_says_what_it_loads(start: Start) -> None:
    worker = start(ADM_PIPELINES="demo-uncond")
    worker.wait_ready()
    first = json.loads(worker.output.splitlines()[0])
    assert (first["event"], first["worker"], first["device"]) == ("loading", "test-0", "cpu")
    assert first["pipelines"] == ["demo-uncond"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["no", pytest.param("yes", marks=needs_compiler)])
def test_worker_that_is_stopped_while_it_loads_ends_at_once_with_status_0(start: Start, compiled: str) -> None:
    worker = start(ADM_COMPILE=compiled)
    eventually(
        lambda: '"compiling"' in worker.output if compiled == "yes" else '"loading"' in worker.output, "it loads"
    )
    assert worker.kill(signal.SIGTERM) == 0, worker.output
    assert '"loaded"' not in worker.output
    assert "Traceback" not in worker.output
    assert json.loads(worker.output.splitlines()[-1])["event"] == "stopped"


@pytest.mark.slow
def test_device_that_hangs_ends_its_worker_and_the_next_one_completes_its_job(
    start: Start, client: Client, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    worker = start(ADM_STEP_TIMEOUT_SECONDS="3", HANG_FILE=str(hang), module="tests.worker.hanging_worker")
    worker.wait_ready()
    hang.touch()
    job_id = client.submit(steps=4, n=2)
    assert worker.process.wait(300) == 70
    line = json.loads(next(each for each in worker.output.splitlines() if "step_hangs" in each))
    assert (line["stage"], line["rows"]) == ("demo/base", 2)
    assert line["silent_seconds"] >= 3
    hang.unlink()
    start()
    (job,) = client.wait_all([job_id])
    assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)
