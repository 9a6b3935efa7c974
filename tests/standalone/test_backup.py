"""The commands of docs/fleet.md bring killed programs back, with what it had when it was backed up."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.contract.job import Job, JobStatus
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.waiting import eventually
from tests.worker.programs import Client, WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack

pytestmark = [pytest.mark.slow, pytest.mark.redis]

LONG: dict[str, object] = {"class_label": "cube", "guidance_scale": 1, "steps": 150, "sampler": "ddpm", "seed": 2}
SHORT: dict[str, object] = {"class_label": "torus", "guidance_scale": 2, "steps": 5, "n": 2, "seed": 1}
DOCUMENT = Path(__file__).parents[2] / "docs/fleet.md"
VARIABLES = {"ADM_CHECKPOINT_SECONDS": "0.2", "ADM_THREADS": "1"}


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))  # short: a socket's path has 107 bytes at most
    yield path
    shutil.rmtree(path)


def commands(name: str) -> str:
    """The commands under a marker of the page."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def run(name: str, **variables: Path) -> None:
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    subprocess.run(["sh", "-ec", commands(name)], env=environment, check=True)


def hashes(job: Job) -> list[str]:
    assert job.status is JobStatus.COMPLETED, job.error
    return [each.sha256 for each in job.images]


def start(settings: Settings, folder: Path, name: str) -> WorkerProcess:
    return WorkerProcess(settings, folder, name, **VARIABLES)


def test_backup_of_a_working_stack_restores_every_job_with_its_bytes(folder: Path) -> None:
    data, backup = folder / "data", folder / "backup"
    (data / "redis").mkdir(parents=True)
    backup.mkdir()
    server = RedisServer(data / "redis")
    weights = write_tiny_stack(folder / "weights").parent
    settings = Settings(data=data, redis_url=server.address, weights=weights, lease_seconds=6, heartbeat_seconds=1)
    server.start()
    worker = start(settings, folder, "before")
    try:
        with server.client() as redis:
            client = Client(redis, settings)
            worker.wait_ready()
            done, undisturbed = client.wait_all([client.post(SHORT), client.post(LONG)])
            running = client.post(LONG | {"priority": "high"})
            waiting = [client.post(SHORT | {"priority": "low", "n": 2}) for _ in range(3)]
            eventually(lambda: worker.output.count(f'"{running}"') > 0 and "checkpointed" in worker.output, "it runs")
            eventually(lambda: client.job(running).progress.step > 5, "it is on its way")
            run("backup", ADM_DATA=data, BACKUP=backup)
            assert not client.job(running).status.is_final, "it should have been longer"
            late = client.post(SHORT)
        worker.kill(signal.SIGKILL)
        server.stop()
        shutil.rmtree(data / "images")  # the disaster
        (data / "redis/appendonlydir/appendonly.aof.manifest").unlink()
        run("restore", ADM_DATA=data, BACKUP=backup)
        server.start()
        worker = start(settings, folder, "after")
        worker.wait_ready()
        with server.client() as redis:
            client = Client(redis, settings)
            jobs = client.wait_all([running, *waiting])
            assert hashes(jobs[0]) == hashes(undisturbed)
            assert all(hashes(each)[:2] == hashes(done) for each in jobs[1:])
            assert hashes(client.job(done.id)) == hashes(done)
            assert [len(each) for each in client.bytes_of(client.job(done.id))]
            assert redis.exists(f"rq:job:{late}") == 0
    finally:
        worker.end()
        server.stop()


def test_snapshot_of_a_server_becomes_the_base_of_a_new_servers_log(folder: Path) -> None:
    old, new = RedisServer(folder / "old"), RedisServer(folder / "new")
    for each in (old, new):
        each.folder.mkdir()
    old.start()
    try:
        with old.client() as redis:
            redis.set("adm:key", "value")
            redis.save()
    finally:
        old.stop()
    (folder / "old/dump.rdb").rename(folder / "redis.rdb")  # what --rdb writes
    run("restore-snapshot", BACKUP=folder, REDIS_DIR=new.folder)
    for _ in range(2):  # what is written after the restore is in the log too
        new.start()
        try:
            with new.client() as redis:
                assert redis.get("adm:key") == b"value"
                redis.set("adm:later", "more")
                assert redis.incr("adm:starts") > 0
        finally:
            new.stop()
    new.start()
    try:
        with new.client() as redis:
            assert redis.get("adm:starts") == b"2"
    finally:
        new.stop()
