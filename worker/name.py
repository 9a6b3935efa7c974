"""Ownership of a worker's name. Two workers with one name on one Redis would recover each other's jobs as orphans.

A start locks its name in the data folder and writes its id to a record in Redis, which expires with its heartbeats. The
ids of the latest starts that held the lock are in a file beside it. They have ended, so their record in Redis is
overwritten at once; a record of any other start is overwritten only after it expires.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

import structlog
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.client import Redis
from redis.exceptions import ResponseError

from files.atomic import atomic_write
from jobs.contract.errors import TakenNameError
from jobs.redis import keys
from jobs.redis.replies import is_wrong_type

log = structlog.get_logger("worker.name")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # in a container too, this is the host's id
STARTS_KEPT = 16  # ids in the file; only the last one that reached Redis matters
LOOK_SECONDS = 0.1  # between two looks at another start's record


class Start(BaseModel):
    """One start of a worker, as in its record in Redis."""

    model_config = ConfigDict(frozen=True)

    id: str = ""  # "" for a worker of an earlier version
    host: str  # the boot id, which containers of a host share
    pid: int

    @classmethod
    def current(cls) -> Self:
        """Return a start of this process, with an id of its own."""
        host = BOOT_ID.read_text().strip() if BOOT_ID.exists() else socket.gethostname()
        return cls(id=uuid4().hex, host=host, pid=os.getpid())


@dataclass(frozen=True)
class Name:
    """A worker's name; one start owns it at a time."""

    text: str
    start: Start
    ended: frozenset[str] = frozenset()  # ids of earlier starts that held the lock on the name

    def take(self, redis: Redis, lease_seconds: int) -> None:
        """Write this start's record. Waits for the record of another start to expire.

        Raises: TakenNameError if that start renews its record, so it is alive.
        """
        key, record = keys.worker_process(self.text), self.start.model_dump_json()
        first_expiry: int | None = None
        while not redis.set(key, record, nx=True, px=lease_seconds * 1000):
            other = holder(redis, key)
            if other is None:
                continue  # it has expired just now
            if other == self.start or (other.id in self.ended and other.host == self.start.host):
                redis.set(key, record, px=lease_seconds * 1000)
                return
            expiry = int(redis.pexpiretime(key))
            if first_expiry is None:
                log.info("waiting_for_name", worker=self.text, at_most_seconds=lease_seconds)
                first_expiry = expiry
            elif expiry > first_expiry:
                where = "this host" if other.host == self.start.host else "another host"
                running = f"a worker named {self.text!r} is running already, process {other.pid} of {where}"
                raise TakenNameError(f"ADM_WORKER_NAME: {running}, on the same Redis; give each its own name")
            time.sleep(LOOK_SECONDS)

    def keep(self, redis: Redis, lease_seconds: int) -> None:
        """Renew this start's record, with every heartbeat.

        Raises: TakenNameError if another start took the name after this one had been silent for its lease.
        """
        key = keys.worker_process(self.text)
        if holder(redis, key) not in (None, self.start):
            text = f"ADM_WORKER_NAME: another worker took the name {self.text!r} while this one was silent"
            raise TakenNameError(text)
        redis.set(key, self.start.model_dump_json(), px=lease_seconds * 1000)


def holder(redis: Redis, key: str) -> Start | None:
    """Return the start that has a name. A record that cannot be read is removed."""
    try:
        present = redis.get(key)
        return None if present is None else Start.model_validate_json(present)
    except (ValidationError, ResponseError) as error:
        if isinstance(error, ResponseError) and not is_wrong_type(error):
            raise
        log.warning("foreign_name_record", key=key)
        redis.delete(key)
        return None


@contextmanager
def locked_name(run_dir: Path, name: str) -> Iterator[Name]:
    """Hold the lock on a worker's name while the block runs. Raises: TakenNameError if a living worker holds it."""
    start, starts = Start.current(), run_dir / f"worker-{name}.starts"
    try:
        lock = FileLock(run_dir / f"worker-{name}.lock", blocking=False).acquire()
    except Timeout as error:
        running = f"a worker named {name!r} is running here already; give this one another name"
        raise TakenNameError(f"ADM_WORKER_NAME: {running}") from error
    with lock:
        ended = starts.read_text().split() if starts.exists() else []
        try:
            with atomic_write(starts) as file:
                file.write("\n".join([*ended[1 - STARTS_KEPT :], start.id]).encode())
        except OSError as error:
            # the worker can serve without the file; if it is killed, its next start waits until its record has expired
            log.warning("start_not_recorded", file=str(starts), error=str(error))
        yield Name(name, start, frozenset(ended))
