"""The probe of containers says whether their own worker serves."""

import socket
import subprocess
import sys

import pytest
from redis import Redis

from jobs.queue.announcements import announce_worker
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.samples import worker_info
from worker.probe import serving

pytestmark = pytest.mark.redis


def announce(redis: Redis, name: str) -> None:
    with redis.pipeline() as pipe:
        announce_worker(pipe, worker_info(name), "", 60)
        pipe.execute()


def test_named_worker_serves_once_it_has_announced_itself(redis: Redis) -> None:
    settings = Settings(worker_name="adm-worker-demo-1")
    announce(redis, "adm-worker-demo-11")
    assert serving(redis, settings) == []
    announce(redis, "adm-worker-demo-1")
    assert serving(redis, settings) == ["adm-worker-demo-1"]


def test_worker_that_stopped_renewing_does_not_serve(redis: Redis) -> None:
    announce(redis, "a")
    redis.delete("adm:worker:a")
    assert serving(redis, Settings(worker_name="a")) == []


def test_unnamed_worker_is_found_by_its_host(redis: Redis) -> None:
    announce(redis, "elsewhere-cuda-0")
    assert serving(redis, Settings()) == []
    announce(redis, f"{socket.gethostname()}-cuda-0")
    assert serving(redis, Settings()) == [f"{socket.gethostname()}-cuda-0"]


@pytest.mark.slow
def test_program_ends_with_a_status_and_one_line(redis: Redis, redis_server: RedisServer) -> None:
    def probe(address: str) -> "subprocess.CompletedProcess[str]":
        variables = {"ADM_REDIS_URL": address, "ADM_WORKER_NAME": "a", "PATH": ""}
        command = [sys.executable, "-m", "worker.probe"]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    absent, unreachable = probe(redis_server.address), probe("redis://127.0.0.1:1/0")
    assert (absent.returncode, unreachable.returncode) == (1, 1)
    assert absent.stderr.startswith("probe: the worker has not announced itself")
    assert unreachable.stderr.startswith("probe: Redis cannot be reached")
    assert absent.stderr.count("\n") == unreachable.stderr.count("\n") == 1
    announce(redis, "a")
    assert probe(redis_server.address).returncode == 0
