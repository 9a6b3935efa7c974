"""The Redis user that docs/serving.md gives workers: it runs jobs, and it cannot touch the callers' keys."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from jobs.callers.keyring import KeyStore
from jobs.callers.quota_windows import PREFIX
from jobs.contract.caller import Role
from jobs.contract.job import JobStatus
from jobs.redis import keys
from jobs.settings import Settings
from standalone.redis_checks import check_rights
from tests.conftest import RedisServer
from tests.service.conftest import MakeKey, ToyWorker, body
from tests.worker.programs import Client, WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack

PAGE = Path(__file__).parents[2] / "docs/serving.md"
PASSWORD = "right-enough"


def send(redis: Redis, *words: str) -> object:
    return redis.execute_command(*words)  # type: ignore[no-untyped-call] # redis-py leaves it untyped


@pytest.fixture
def workers_redis(redis_server: RedisServer, redis: Redis) -> Iterator[Redis]:
    """A client of the user that the line of Redis' configuration in docs/serving.md defines."""
    (line,) = re.findall(r"^user (adm-worker .*)$", PAGE.read_text(), re.MULTILINE)
    name, *rules = line.replace("PASSWORD", PASSWORD).split()
    send(redis, "ACL", "SETUSER", name, *rules)
    with Redis.from_url(f"unix://{name}:{PASSWORD}@{redis_server.socket}") as own:
        yield own
    redis.acl_deluser(name)


def test_workers_user_runs_the_job_of_a_caller_with_a_key(
    workers_redis: Redis, client: httpx2.Client, service_settings: Settings, make_key: MakeKey
) -> None:
    headers = make_key()
    worker = ToyWorker(workers_redis, service_settings)
    try:
        given = headers | {"Prefer": "wait=30"}
        while (answer := client.post("/v1/jobs", json=body(), headers=given)).status_code == 503:
            pass  # until the service has seen the worker
        assert answer.json()["status"] == "completed", answer.json()
    finally:
        worker.stop()


@pytest.mark.process
@pytest.mark.slow
def test_worker_program_starts_requeues_and_resumes_with_the_rights_of_the_user(
    workers_redis: Redis, redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    weights = write_tiny_stack(tmp_path / "weights").parent
    settings = Settings(data=tmp_path, redis_url=redis_server.address, weights=weights)
    client = Client(redis, settings)
    address = f"unix://adm-worker:{PASSWORD}@{redis_server.socket}"
    worker = WorkerProcess(settings, tmp_path, ADM_REDIS_URL=address, ADM_DRAIN_SECONDS="0")
    try:
        worker.wait_ready()
        job_id = client.submit(steps=250, n=8)
        client.wait_started(job_id)
        assert worker.kill(signal.SIGTERM) == 0, worker.output
        assert client.job(job_id).status is JobStatus.QUEUED, worker.output
        worker = WorkerProcess(settings, tmp_path, ADM_REDIS_URL=address)
        (job,) = client.wait_all([job_id])
        assert job.status is JobStatus.COMPLETED, worker.output
    finally:
        worker.end()


def test_workers_user_has_every_right_that_the_doctor_looks_for(workers_redis: Redis) -> None:
    assert check_rights(workers_redis).verdict == "ok"


def test_no_name_that_workers_need_begins_like_those_that_are_kept_from_them() -> None:
    """The user's pattern excludes some first letters, so no name that workers need may begin with one of them."""
    names = set(re.findall(r'"(adm:[^"{]+)', Path(keys.__file__).read_text())) | {PREFIX}
    assert len(names) > 30
    kept_away = {each for each in names if re.match("adm:[aq]", each)}
    assert kept_away == {keys.API_KEYS, keys.API_KEYS_VERSION, PREFIX}


@pytest.mark.parametrize("key", [keys.API_KEYS, keys.API_KEYS_VERSION, f"{PREFIX}/any"])
@pytest.mark.parametrize("command", ["SET KEY 1", "DEL KEY", "HSET KEY a 1", "HGETALL KEY", "RENAME KEY adm:jobs"])
def test_workers_user_neither_reads_nor_writes_what_decides_about_callers(
    workers_redis: Redis, key: str, command: str
) -> None:
    with pytest.raises(NoPermissionError):
        send(workers_redis, *(key if word == "KEY" else word for word in command.split()))


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "CONFIG GET *", "ACL LIST", "REPLICAOF NO ONE", "KEYS *"]
)
def test_workers_user_may_not_command_the_server(workers_redis: Redis, command: str) -> None:
    with pytest.raises(NoPermissionError):
        send(workers_redis, *command.split())


def test_scripts_and_transactions_of_the_workers_user_go_no_further(workers_redis: Redis, redis: Redis) -> None:
    """A worker's host that is compromised cannot make itself an operator."""
    KeyStore(redis).create("ann", Role.USER)
    before = redis.hgetall(keys.API_KEYS)
    with pytest.raises(NoPermissionError):
        KeyStore(workers_redis).create("mallory", Role.OPERATOR)
    refused = workers_redis.eval(f"return redis.pcall('HSET', '{keys.API_KEYS}', 'a', 'b')['err']", 0)
    assert refused is not None
    assert b"ACL" in refused
    assert redis.hgetall(keys.API_KEYS) == before
