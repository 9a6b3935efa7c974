"""Whose name it is: two workers of one name on one Redis would take each other's jobs for their own orphans.

The file lock on a name tells of workers that share ADM_DATA. This record in Redis tells of all others.
"""

import os
import socket
import time
from pathlib import Path
from typing import IO, Self

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.client import Redis
from redis.exceptions import ResponseError

from jobs.contract.errors import TakenNameError
from jobs.queue import keys
from jobs.queue.rubbish import is_wrong_type

log = structlog.get_logger("worker.namesake")

PROC = Path("/proc")
LOOK_SECONDS = 0.1  # between two looks whether a namesake lives


class Process(BaseModel):
    """One process, told apart from every other, also from a later one of its number."""

    model_config = ConfigDict(frozen=True)

    host: str  # since its last start
    pid_namespace: str  # a container has its own numbers
    pid: int
    started: str
    lock: str  # the file that it holds locked, which outlives it

    @classmethod
    def current(cls, lock: IO[str] | None = None) -> Self:
        """This process, which holds a lock file perhaps."""
        status = None if lock is None else os.fstat(lock.fileno())
        return cls(
            host=read(PROC / "sys/kernel/random/boot_id") or socket.gethostname(),
            pid_namespace=link(PROC / "self/ns/pid"),
            pid=os.getpid(),
            started=started(os.getpid()),
            lock="" if status is None else f"{status.st_dev}:{status.st_ino}",
        )

    def is_known_dead(self, by: Self) -> bool:
        """Whether another process can tell that this one is dead; False where it lives, and where nobody can tell."""
        if self.host != by.host:
            return False
        if self.lock and self.lock == by.lock:
            return self != by  # that one holds the lock now
        if self.pid_namespace != by.pid_namespace:
            return False
        if PROC.exists():
            return started(self.pid) != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def take_name(redis: Redis, name: str, mine: Process, lease_seconds: int) -> None:
    """Make a worker's name this process's.

    One that died here gives it up at once; one elsewhere when it has been silent for its lease. Raises: TakenNameError
    while the name is a living worker's.
    """
    key, text = keys.worker_process(name), mine.model_dump_json()
    heard_until, waits = 0, False
    while not redis.set(key, text, nx=True, px=lease_seconds * 1000):
        other = holder(redis, key)
        if other is None:
            continue  # it has expired just now
        if other == mine or other.is_known_dead(mine):
            redis.set(key, text, px=lease_seconds * 1000)
            return
        expires_at = int(redis.pexpiretime(key))
        if lives_here(other, mine) or (waits and expires_at > heard_until):
            raise TakenNameError(
                f"ADM_WORKER_NAME: a worker named {name!r} is running already, process {other.pid} of "
                f"{'this host' if other.host == mine.host else 'another host'}, on the same Redis; give each its own"
            )
        if not waits:
            log.info("waiting_for_namesake", worker=name, at_most_seconds=lease_seconds)
        heard_until, waits = expires_at, True
        time.sleep(LOOK_SECONDS)


def holder(redis: Redis, key: str) -> Process | None:
    """Who has a name; rubbish has none, and is removed."""
    try:
        present = redis.get(key)
        return None if present is None else Process.model_validate_json(present)
    except (ValidationError, ResponseError) as error:
        if isinstance(error, ResponseError) and not is_wrong_type(error):
            raise
        log.warning("rubbish_for_a_name", key=key)
        redis.delete(key)
        return None


def lives_here(other: Process, mine: Process) -> bool:
    return (other.host, other.pid_namespace) == (mine.host, mine.pid_namespace)


def keep_name(redis: Redis, name: str, mine: Process, lease_seconds: int) -> None:
    """Tell with every heartbeat that the name is still this process's.

    Raises: TakenNameError when it is another's, who took it after this one had been silent for its lease.
    """
    key, text = keys.worker_process(name), mine.model_dump_json()
    if holder(redis, key) not in (None, mine):
        raise TakenNameError(f"ADM_WORKER_NAME: another worker took the name {name!r} while this one was silent")
    redis.set(key, text, px=lease_seconds * 1000)


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" where there is none, or nobody tells."""
    text = read(PROC / str(pid) / "stat")
    fields = text.rpartition(")")[2].split()
    return "" if not fields or fields[0] in "ZX" else fields[19]  # proc(5): state is field 3, starttime field 22


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
