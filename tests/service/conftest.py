"""A real service process on a real Redis, and a worker that claims and completes with tiny images."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.callers.keyring import IN_FORCE_SECONDS, NEEDED, KeyStore
from jobs.contract.caller import Role
from jobs.contract.job import Progress, Usage
from jobs.queue.events import Preview
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO, DEMO_UNCOND, png, worker_info
from tests.waiting import eventually
from tests.warm import SERVICE, Program, StartProgram, WarmProgram
from tests.worker.names import owned
from worker.claim import Cancel, Claim
from worker.inbox import Inbox

ROOT = Path(__file__).parents[2]
MakeKey = Callable[..., dict[str, str]]


@contextmanager
def running_service(
    settings: Settings, start: StartProgram = WarmProgram, /, **variables: str
) -> Iterator[tuple[str, Program, list[str]]]:
    """The program itself on a free port; its address, its process, and what it logs."""
    given = {f"ADM_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
    output, theirs = os.pipe()
    process = start("service.main", [], environment | given | {"ADM_PORT": "0"} | variables, theirs, SERVICE)
    os.close(theirs)
    log = os.fdopen(output)  # the reader closes it, at its end
    first = log.readline()
    found = re.search(r'"port": (\d+)', first)
    assert found is not None, first
    lines = [first]

    def read() -> None:
        with log:
            lines.extend(log)

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield f"http://127.0.0.1:{found[1]}", process, lines
    finally:
        process.terminate()
        process.wait(300)
        reader.join(60)


@pytest.fixture(scope="session")
def service_settings(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data=tmp_path_factory.mktemp("service"),
        redis_url=redis_server.address,
        sweep_seconds=0.2,
        lease_seconds=300,  # workers of tests may stall, and those of the page's tests send heartbeats on demand only
        fleet_refresh_seconds=0,  # what a test announces counts at once
    )


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    """A service for one module's tests; it ends with them, because its sweep would change the jobs of other tests."""
    with running_service(service_settings) as (address, _, _):
        yield address


@pytest.fixture
def client(address: str, redis: Redis) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=address, timeout=60) as client:
        yield client


METRICS = "# TYPE adm_toy_steps counter\nadm_toy_steps_total 3.0\n"


class ToyWorker:
    """A worker whose network is a grey pixel; everything else, such as the inbox, is real."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.images = ImageStore(settings.store_address)
        self.inbox = Inbox(redis, settings, owned("cpu-0"), [DEMO, DEMO_UNCOND])
        self.inbox.open()
        self._claims: dict[str, Claim] = {}
        self._next_heartbeat = 0.0
        self._heartbeat()
        self._stop, self._held = Event(), Event()
        self._held.set()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Claim jobs, but finish none until `release`."""
        self._held.clear()

    def release(self) -> None:
        self._held.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.inbox.close()

    def _heartbeat(self) -> None:
        if time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + 2
            for job_id in self.inbox.heartbeat(worker_info(), METRICS):
                self.inbox.results.cancelled(self._claims.pop(job_id))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._heartbeat()
            num_claimed = sum(each.request.num_rows for each in self._claims.values())
            for command in self.inbox.poll(room=max(0, 64 - num_claimed), wait_seconds=0.02):
                if isinstance(command, Cancel):
                    self.inbox.results.cancelled(self._claims.pop(command.job_id))
                else:
                    self._claims[command.claim.job_id] = command.claim
            if self._held.is_set():
                for claim in self._claims.values():
                    self._make(claim)
                self._claims.clear()

    def _make(self, claim: Claim) -> None:
        steps = claim.request.steps
        self.inbox.reports.progress((claim, Progress(stage="base", step=steps, steps=steps, fraction=0.5)))
        if claim.request.previews:
            self.inbox.reports.preview(claim, Preview(0, "base", 1, claim.request.steps, png(1)))
        images = []
        for index in range(claim.request.num_images):
            images.append(self.images.put(claim.job_id, claim.token, index, png(index)))
            self.inbox.results.image_ready(claim, images[-1])
        results: dict[str, Any] | None = (
            {"scores": [[] for _ in claim.request.images]} if claim.request.kind == "score" else None
        )
        self.inbox.results.complete(claim, images, Usage(steps=steps, device_seconds=0.01), "fingerprint", results)


@pytest.fixture
def worker(redis_server: RedisServer, redis: Redis, service_settings: Settings) -> Iterator[ToyWorker]:
    own = redis_server.client()
    worker = ToyWorker(own, service_settings)
    yield worker
    worker.stop()
    own.close()


@pytest.fixture
def fleet(worker: ToyWorker, client: httpx2.Client) -> ToyWorker:
    """A worker that the service has seen, and that claims jobs but finishes none."""
    worker.hold()
    while not client.get("/v1/workers").raise_for_status().json()["data"]:
        time.sleep(0.05)
    return worker


@pytest.fixture
def make_key(redis: Redis, service_settings: Settings) -> Iterator[MakeKey]:
    """Makes keys; returns the header that each is sent in."""
    made: list[str] = []

    def make(name: str = "ann", role: Role = Role.USER, weight: float = 1.0) -> dict[str, str]:
        made.append(name)
        return {"Authorization": f"Bearer {KeyStore(redis).create(name, role, weight).key}"}

    yield make
    (service_settings.data / NEEDED).unlink(missing_ok=True)
    if made or redis.exists(keys.API_KEYS):
        redis.flushall()
        time.sleep(IN_FORCE_SECONDS)  # the service of the module's other tests has forgotten them by then


def wait_followed(redis: Redis, job_id: str) -> None:
    """Wait until a stream or a poll has subscribed to a job: previews are sent to subscribers alone."""
    channel = keys.channel(job_id)
    eventually(lambda: dict(redis.pubsub_numsub(channel))[channel.encode()] > 0, f"{job_id} is followed")


def body(**fields: Any) -> dict[str, Any]:
    return {"class_label": "torus", "guidance_scale": 2.5, "steps": 25} | fields
