"""Operators have real workers load and unload pipelines, over HTTP and by `adm models load`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from adm_client import Client
from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.service.conftest import MakeKey, ToyWorker, running_service
from tests.waiting import eventually
from tests.worker.programs import WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack

CHANGES = "/v1/workers/changes"
LOAD = {"action": "load", "model": "demo"}


@pytest.fixture
def fleet_settings(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> Settings:
    """Settings of workers with two stacks, and of a service that reads their announcements at once."""
    folder = write_tiny_stack(tmp_path / "weights")
    shutil.copytree(folder, folder.parent / "other")
    manifest = json.loads((folder / "stack.json").read_text())
    manifest["pipelines"] = {"other": manifest["pipelines"]["demo"]}
    (folder.parent / "other" / "stack.json").write_text(json.dumps(manifest))
    return Settings(data=tmp_path, redis_url=redis_server.address, weights=folder.parent, fleet_refresh_seconds=0)


@pytest.fixture
def two_workers(fleet_settings: Settings, tmp_path: Path) -> Iterator[None]:
    workers = [WorkerProcess(fleet_settings, tmp_path, name, ADM_PIPELINES="other") for name in ("one", "two")]
    try:
        for each in workers:
            each.wait_ready()
        yield
    finally:
        for each in workers:
            each.end()


def adm(address: str, *arguments: str) -> tuple[int, list[str]]:
    """`adm models` as a user calls it: its status, and what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
    command = [sys.executable, "-m", "cli", "models", *arguments, "--url", address]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_command_changes_one_worker_or_all_and_prints_what_each_of_them_answers(fleet_settings: Settings) -> None:
    with running_service(fleet_settings) as (address, _, _), Client(address) as client:
        eventually(lambda: client.model("other").workers == ["one", "two"], "both workers are known")
        status, lines = adm(address, "load", "demo", "--worker", "one")
        assert (status, lines[-1]) == (0, "one: done: serves other, demo")
        assert client.model("demo").workers == ["one"]
        status, lines = adm(address, "load", "demo")
        assert status == 0
        assert {"one: done: served it already", "two: done: serves other, demo"} <= set(lines)
        assert client.generate(model="demo", class_label="torus", steps=2, seed=1).pngs
        status, lines = adm(address, "unload", "other", "--json")
        assert status == 0
        (line,) = lines
        assert [(each["worker"], each["status"]) for each in json.loads(line)["workers"]] == [
            ("one", "done"),
            ("two", "done"),
        ]
        status, lines = adm(address, "unload", "demo", "--worker", "two")
        assert (status, lines[-1]) == (
            1,
            "two: refused: 'demo' is its only pipeline; load another one first, or stop the worker",
        )
        assert adm(address, "unload", "no-such") == (1, ["adm: 404: no live worker serves 'no-such'"])


@pytest.mark.process
def test_only_operators_change_the_pipelines_of_workers_and_the_audit_log_records_it(
    fleet_settings: Settings, redis_server: RedisServer, make_key: MakeKey
) -> None:
    user, operator = make_key("ann"), make_key("olga", Role.OPERATOR)
    with (
        running_service(fleet_settings) as (address, _, lines),
        redis_server.client() as own,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        worker = ToyWorker(own, fleet_settings)
        try:
            eventually(lambda: bool(client.get("/v1/workers", headers=operator).json().get("data")), "it is known")
            assert client.post(CHANGES, json=LOAD).status_code == 401
            assert client.post(CHANGES, json=LOAD, headers=user).status_code == 403
            answer = client.post(CHANGES, json=LOAD, headers=operator)
            assert answer.status_code == 202
            path = f"{CHANGES}/{answer.json()['id']}"
            assert answer.headers["Location"] == path
            assert client.get(path, headers=user).status_code == 403
            assert client.get(path, headers=operator).json() == answer.json()
        finally:
            worker.stop()
        lost = client.get(path, headers=operator).json()
        assert (lost["is_final"], lost["workers"][0]["status"]) == (True, "lost")
    audited = [json.loads(line) for line in lines if '"event": "audit"' in line]
    assert [(each["action"], each["target"], each["outcome"]) for each in audited] == [
        ("POST", CHANGES, "refused"),
        ("POST", CHANGES, "refused"),
        ("create_change", "load demo", "done"),
    ]


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"action": "load", "model": "demo", "worker": "nobody"}, 404, "no live worker 'nobody'; there are: cpu-0"),
        ({"action": "unload", "model": "nothing"}, 404, "no live worker serves 'nothing'"),
        ({"action": "reload", "model": "demo"}, 422, ""),
        ({"action": "load", "model": "../demo"}, 422, ""),
        ({"action": "load"}, 422, ""),
        ({"action": "load", "model": "demo", "workers": "all"}, 422, ""),
    ],
)
def test_change_that_cannot_be_asked_for_is_refused(
    client: httpx2.Client, change: dict[str, str], status: int, message: str
) -> None:
    answer = client.post(CHANGES, json=change)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_unknown_change_is_none_and_without_workers_there_is_nobody_to_ask(client: httpx2.Client) -> None:
    answer = client.get(f"{CHANGES}/none")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:adm:problem:unknown-change")
    answer = client.post(CHANGES, json=LOAD)
    assert (answer.status_code, answer.json()["detail"]) == (404, "no worker is live; start one")
