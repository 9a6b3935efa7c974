"""Whose name it is: a living namesake is refused, a dead one's name is free at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from redis import Redis

from jobs.contract.errors import SettingsError
from jobs.queue import keys
from worker.main import hold_name
from worker.namesake import Process, keep_name, started, take_name

NAME, LEASE_SECONDS = "cpu-0", 30
MINE = Process.current()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process of this host."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def of(process: "subprocess.Popen[bytes]") -> Process:
    return MINE.model_copy(update={"pid": process.pid, "started": started(process.pid)})


def announce(redis: Redis, process: Process, seconds: float = LEASE_SECONDS) -> None:
    redis.set(keys.worker_process(NAME), process.model_dump_json(), px=int(seconds * 1000))


def holder(redis: Redis) -> str | None:
    return redis.get(keys.worker_process(NAME))  # type: ignore[return-value] # what is compared is text


def test_free_name_is_taken_and_taken_again_by_the_same_process(redis: Redis) -> None:
    for _ in range(2):  # the first answer may be lost
        take_name(redis, NAME, MINE, LEASE_SECONDS)
    assert 0 < redis.ttl(keys.worker_process(NAME)) <= LEASE_SECONDS


def test_living_namesake_of_this_host_is_refused(redis: Redis, sleeper: "subprocess.Popen[bytes]") -> None:
    announce(redis, of(sleeper))
    with pytest.raises(SettingsError, match=f"ADM_WORKER_NAME: .*{NAME}.* process {sleeper.pid} of this host"):
        take_name(redis, NAME, MINE, LEASE_SECONDS)


def test_name_of_a_killed_process_is_free_at_once(redis: Redis, sleeper: "subprocess.Popen[bytes]") -> None:
    other = of(sleeper)
    announce(redis, other)
    sleeper.kill()
    sleeper.wait()
    assert other.is_known_dead(MINE)
    take_name(redis, NAME, MINE, LEASE_SECONDS)


def test_other_process_of_the_same_number_is_not_the_dead_one(redis: Redis) -> None:
    announce(redis, MINE.model_copy(update={"started": "1"}))
    take_name(redis, NAME, MINE, LEASE_SECONDS)


def test_whoever_holds_the_lock_file_knows_that_its_last_holder_is_dead(redis: Redis, tmp_path: Path) -> None:
    with hold_name(tmp_path, NAME) as lock:
        mine = Process.current(lock)
        announce(redis, mine.model_copy(update={"pid": 1, "pid_namespace": "of a container that is gone"}))
        take_name(redis, NAME, mine, LEASE_SECONDS)


def test_silent_namesake_elsewhere_is_waited_for(redis: Redis) -> None:
    announce(redis, MINE.model_copy(update={"host": "elsewhere"}), seconds=0.3)
    take_name(redis, NAME, MINE, LEASE_SECONDS)


def test_namesake_elsewhere_that_is_heard_is_refused(redis: Redis) -> None:
    other, stop = MINE.model_copy(update={"host": "elsewhere"}), Event()
    announce(redis, other)

    def beat() -> None:
        while not stop.wait(0.05):
            announce(redis, other)

    thread = Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SettingsError, match="another host"):
            take_name(redis, NAME, MINE, LEASE_SECONDS)
    finally:
        stop.set()
        thread.join()


def test_worker_whose_name_was_taken_while_it_was_silent_ends_and_leaves_it(redis: Redis) -> None:
    announce(redis, MINE.model_copy(update={"host": "elsewhere"}))
    before = holder(redis)
    with pytest.raises(SettingsError, match="took the name"):
        keep_name(redis, NAME, MINE, LEASE_SECONDS)
    assert holder(redis) == before


def test_current_process_says_when_it_started() -> None:
    assert started(os.getpid()) == MINE.started != ""
