"""A worker's name has one owner: a living one is refused to others, and a dead one's name is free at once."""

import resource
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import cast

import pytest
from redis import Redis
from structlog.testing import capture_logs

from jobs.contract.errors import SettingsError, TakenNameError
from jobs.redis import keys
from tests.conftest import RedisServer
from tests.worker.names import START, owned
from worker.name import STARTS_KEPT, Name, Start, locked_name

NAME, LEASE_SECONDS = "cpu-0", 30
OTHER, ELSEWHERE = Start.current(), START.model_copy(update={"id": "other", "host": "elsewhere"})
HOLD = """
import sys
from pathlib import Path
from redis import Redis
from worker.name import locked_name

with locked_name(Path(sys.argv[1]), "cpu-0") as name:
    name.take(Redis.from_url(sys.argv[2]), 30)
    print("taken", flush=True)
    input()
"""


def announce(redis: Redis, start: Start, seconds: float = LEASE_SECONDS) -> None:
    redis.set(keys.worker_process(NAME), start.model_dump_json(), px=int(seconds * 1000))


def holder(redis: Redis) -> str | None:
    found = cast(bytes | None, redis.get(keys.worker_process(NAME)))
    return None if found is None else found.decode()


def test_free_name_is_taken_and_taken_again_by_the_same_start(redis: Redis) -> None:
    for _ in range(2):  # the first answer may be lost
        owned(NAME).take(redis, LEASE_SECONDS)
    assert 0 < redis.ttl(keys.worker_process(NAME)) <= LEASE_SECONDS


@pytest.mark.parametrize(("other", "where"), [(OTHER, "this host"), (ELSEWHERE, "another host")])
def test_name_of_a_living_worker_is_refused(redis: Redis, other: Start, where: str) -> None:
    announce(redis, other)
    stop = Event()

    def beat() -> None:
        while not stop.wait(0.05):
            announce(redis, other)

    thread = Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SettingsError, match=f"ADM_WORKER_NAME: .*{NAME}.* process {other.pid} of {where}"):
            owned(NAME).take(redis, LEASE_SECONDS)
    finally:
        stop.set()
        thread.join()


def test_name_of_a_killed_worker_is_free_at_once(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), redis_server.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        with pytest.raises(TakenNameError, match="running here already"), locked_name(tmp_path, NAME):
            pass
        process.kill()
    with locked_name(tmp_path, NAME) as name:
        name.take(redis, LEASE_SECONDS)
        assert holder(redis) == name.start.model_dump_json()


def test_name_of_a_killed_worker_is_free_after_starts_that_did_not_reach_redis(redis: Redis, tmp_path: Path) -> None:
    with locked_name(tmp_path, NAME) as name:
        name.take(redis, LEASE_SECONDS)
    for _ in range(STARTS_KEPT - 1):
        with locked_name(tmp_path, NAME):
            pass
    with locked_name(tmp_path, NAME) as name:
        assert len(name.ended) == STARTS_KEPT
        name.take(redis, LEASE_SECONDS)


def test_start_of_another_host_is_not_taken_for_dead(redis: Redis) -> None:
    """Two machines may share a data folder whose file system does not lock between them."""
    announce(redis, ELSEWHERE, seconds=0.3)
    Name(NAME, START, frozenset([ELSEWHERE.id])).take(redis, LEASE_SECONDS)
    assert redis.ttl(keys.worker_process(NAME)) > 1


def test_name_of_a_silent_worker_is_waited_for(redis: Redis) -> None:
    announce(redis, OTHER, seconds=0.3)
    owned(NAME).take(redis, LEASE_SECONDS)


def test_worker_whose_name_was_taken_while_it_was_silent_ends_and_leaves_it(redis: Redis) -> None:
    announce(redis, ELSEWHERE)
    before = holder(redis)
    with pytest.raises(SettingsError, match="took the name"):
        owned(NAME).keep(redis, LEASE_SECONDS)
    assert holder(redis) == before


def test_worker_starts_on_a_full_disk_and_keeps_the_earlier_starts(tmp_path: Path) -> None:
    """As a worker does that is restarted because its images could not be stored."""
    with locked_name(tmp_path, NAME) as name:
        earlier = name.start.id
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # the process gets an error, as Python ignores the signal
    try:
        with capture_logs() as logged, locked_name(tmp_path, NAME) as name:
            assert name.ended == {earlier}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each["event"] for each in logged] == ["start_not_recorded"]
    with locked_name(tmp_path, NAME) as name:
        assert name.ended == {earlier}
