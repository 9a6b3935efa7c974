import json
from pathlib import Path

import pytest

from jobs.errors import UnavailableError
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO
from tests.worker.programs import Start
from worker import main
from worker.inbox import Inbox
from worker.stopping import Stopping


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_redis_that_stays_away_is_one_line_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_to_stop: bool
) -> None:
    monkeypatch.setattr(main, "START_PATIENCE_SECONDS", 60 if told_to_stop else 0.2)
    stopping = Stopping()
    if told_to_stop:
        stopping.set()
    client = RedisServer(tmp_path).client()
    with pytest.raises(UnavailableError, match=r"\AADM_REDIS_URL: .*\Z"):
        main.open_inbox(Inbox(client, Settings(data=tmp_path), "cpu-0", [DEMO]), stopping)


@pytest.mark.slow
def test_first_line_of_a_worker_says_what_it_loads(start: Start) -> None:
    worker = start(ADM_PIPELINES="demo-uncond")
    worker.wait_ready()
    first = json.loads(worker.output.splitlines()[0])
    assert (first["event"], first["worker"], first["device"]) == ("loading", "test-0", "cpu")
    assert first["pipelines"] == ["demo-uncond"]
