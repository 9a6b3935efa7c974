"""Several processes behind one port: one service to its callers, whatever happens to one of them."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from jobs.callers.keyring import KeyStore
from jobs.contract.caller import Role
from jobs.settings import Settings
from service.metrics import Metrics
from service.process_metrics import ProcessMetrics
from service.process_slot import Slot
from tests.cli.test_keys import adm_keys
from tests.service.conftest import ToyWorker, body, running_service
from tests.standalone.programs import alive
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.warm import Program

pytestmark = [pytest.mark.slow, pytest.mark.process]
Running = tuple[str, Program, list[str]]


@pytest.fixture
def running(redis: Redis, service_settings: Settings) -> Iterator[Running]:
    """A service of two processes that both answer."""
    with running_service(service_settings, ADM_SERVICE_PROCESSES="2") as started:
        eventually(lambda: seen_processes(started[0]) == {"0", "1"}, "both answer")
        yield started


def text_of(address: str, path: str) -> str:
    """A route's answer on a new connection, so from either process; "" while a process is started again."""
    try:
        return httpx2.get(f"{address}{path}", timeout=60).text
    except httpx2.TransportError:
        return ""


def answered(address: str, route: str = "/livez") -> dict[str, float]:
    """Requests of a route that each process has answered, from one scrape; that of the other may be seconds old."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text_of(address, "/metrics")):
        for each in family.samples:
            if each.name == "adm_http_requests_total" and each.labels["route"] == route:
                found[each.labels["process"]] = each.value
    return found


def seen_processes(address: str) -> set[str]:
    text_of(address, "/livez")
    return set(answered(address))


def events(lines: list[str], name: str) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, list(lines)) if each["event"] == name]


def test_metrics_of_all_processes_come_in_one_scrape_and_no_counter_falls(running: Running) -> None:
    address, _, _ = running
    last: dict[str, float] = {}
    for _ in range(40):
        httpx2.get(f"{address}/healthz", timeout=60)  # which nothing else asks for
        now = answered(address, "/healthz")
        assert all(now[process] >= last[process] for process in last)
        last = now
    eventually(lambda: sum(answered(address, "/healthz").values()) == 40, "all are counted")


def test_process_that_dies_is_started_again_and_the_log_says_so(running: Running) -> None:
    address, process, lines = running
    victim = next(each for each in events(lines, "process_started") if each["process"] == 0)
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: len(events(lines, "process_started")) == 3, "it is started again")
    (died,) = events(lines, "process_died")
    assert (died["process"], died["pid"], died["status"]) == (0, victim["pid"], -signal.SIGKILL)
    eventually(lambda: seen_processes(address) == {"0", "1"}, "both answer")
    assert process.poll() is None


def test_one_process_expires_jobs_and_the_one_that_replaces_it_continues(
    running: Running, redis: Redis, worker: ToyWorker
) -> None:
    address, _, lines = running
    worker.hold()

    def expiries() -> list[dict[str, Any]]:
        """Of the log, which is written after the jobs have expired: a process must not be killed in between."""
        return [each for each in events(lines, "jobs_timed_out") if each["expired"]]

    def expire_jobs() -> None:
        before = len(expiries())
        for _ in range(2):  # one may be claimed
            httpx2.post(f"{address}/v1/jobs", json=body(n=64, upsample=False, expires_in=1), timeout=60)
        eventually(lambda: len(expiries()) > before, "a job expires")

    expire_jobs()
    os.kill(next(e["pid"] for e in events(lines, "process_started") if e["process"] == 0), signal.SIGKILL)
    eventually(lambda: len(events(lines, "process_started")) == 3, "it is started again")
    expire_jobs()
    assert {each["process"] for each in expiries()} == {"0"}


def test_sigterm_ends_streams_and_all_processes_and_frees_the_port(running: Running, worker: ToyWorker) -> None:
    address, process, lines = running
    worker.hold()
    job = httpx2.post(f"{address}/v1/jobs", json=body(), timeout=60).json()
    pids = [each["pid"] for each in events(lines, "process_started")]
    with httpx2.stream("GET", f"{address}/v1/jobs/{job['id']}/events", timeout=30) as stream:
        chunks = stream.iter_raw()
        next(chunks)
        process.terminate()
        for _ in chunks:  # until the service closes it, and not cut
            pass
    assert process.wait(300) == -signal.SIGTERM
    assert not any(psutil.pid_exists(each) for each in pids)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{address}/livez", timeout=60)
    worker.release()


def test_processes_end_when_the_one_that_started_them_is_killed(running: Running) -> None:
    _, process, lines = running
    pids = [each["pid"] for each in events(lines, "process_started")]
    process.kill()
    process.wait()
    eventually(lambda: not any(alive(each) for each in pids), "all end")


def test_change_of_the_keys_is_in_force_at_all_processes_when_its_command_returns(
    redis: Redis, service_settings: Settings, tmp_path: Path
) -> None:
    """A service that ran without keys, each request on a connection of its own, so at either process.

    A command takes a while to exit, so its function is also called directly, and requests then follow at once.
    """

    def answers(key: str = "") -> set[int]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {httpx2.get(f"{address}/v1/caller", headers=headers, timeout=60).status_code for _ in range(60)}

    with running_service(service_settings, ADM_SERVICE_PROCESSES="2", ADM_DATA=str(tmp_path)) as (address, _, lines):
        eventually(lambda: seen_processes(address) == {"0", "1"}, "both answer")
        assert answers() == {200}
        made = json.loads(adm_keys(service_settings, "create", "--name", "ann", "--role", "user", "--json").stdout)
        assert (answers(), answers(made["key"])) == ({401}, {200})
        rotated = adm_keys(service_settings, "rotate", "ann").stdout.strip()
        assert (answers(made["key"]), answers(rotated)) == ({401}, {200})
        store = KeyStore(redis)
        again = store.rotate("ann").key
        assert answers(rotated) == {401}
        assert answers(again) == {200}
        store.revoke("ann")
        assert answers(again) == {401}
        other = store.create("bob", Role.USER).key
        assert answers(other) == {200}
        adm_keys(service_settings, "revoke", "bob")
        assert (answers(), answers(again), answers(other)) == ({401}, {401}, {401})
        logged = [
            (each["status"], each["process"]) for each in events(lines, "request") if each["path"] == "/v1/caller"
        ]
    assert {(200, 0), (200, 1), (401, 0), (401, 1)} <= {(status, int(process)) for status, process in logged}


def test_snapshot_of_another_service_on_the_same_redis_is_not_shown(redis: Redis) -> None:
    for service in ("a", "b"):
        ProcessMetrics(redis, Metrics(), Slot(service, 1, 2)).leave()
    shown = ProcessMetrics(redis, Metrics(), Slot("a", 0, 2)).texts()
    assert [labels for labels, _ in shown] == [{"process": "0"}, {"process": "1"}]
    assert ProcessMetrics(redis, Metrics(), Slot("c", 0, 2)).texts()[1:] == []


def test_service_of_one_process_labels_nothing_by_process(redis: Redis) -> None:
    ((labels, text),) = ProcessMetrics(redis, Metrics(), Slot("a", 0, 1)).texts()
    assert labels == {}
    assert "adm_service_process_start_time_seconds" in text


@contextmanager
def without_store(settings: Settings, store: Path) -> Iterator[Running]:
    """A service of two processes whose store is replaced by a file after the start, so that none can open it again."""
    with running_service(settings, ADM_SERVICE_PROCESSES="2", ADM_STORE=str(store)) as started:
        eventually(lambda: seen_processes(started[0]) == {"0", "1"}, "both answer")
        shutil.rmtree(store)
        store.write_text("no folder")
        yield started


def test_service_whose_processes_fail_at_every_start_ends_with_the_cause(
    service_settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    with without_store(service_settings, tmp_path / "images") as (_, process, lines):
        for each in events(lines, "process_started"):
            os.kill(each["pid"], signal.SIGKILL)
        assert process.wait(PATIENCE_SECONDS) == 1
    *logged, last = lines
    assert last.startswith("adm service: its processes fail at every start: SettingsError: ADM_STORE: ")
    died = [json.loads(each) for each in logged if '"process_died"' in each]
    assert sum(each["cause"].startswith("SettingsError: ") for each in died) in range(4, 8)


def test_process_that_fails_at_every_start_is_started_again_while_another_serves(
    service_settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    store = tmp_path / "images"
    with without_store(service_settings, store) as (address, process, lines):
        os.kill(next(each["pid"] for each in events(lines, "process_started") if each["process"] == 0), signal.SIGKILL)
        eventually(lambda: len(events(lines, "process_died")) == 5, "it has died five times")
        assert process.poll() is None
        assert httpx2.get(f"{address}/livez", timeout=60).status_code == 200
        store.unlink()
        eventually(lambda: seen_processes(address) == {"0", "1"}, "both answer")
