"""A queue, a store and inboxes on a real Redis; workers as processes of their own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from redis import Redis

from jobs.contract.job import Usage
from jobs.contract.request import JobRequest
from jobs.queue.job_queue import JobQueue
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.conftest import RedisServer, running_redis
from tests.jobs.samples import DEMO, DEMO_UNCOND, png, replay
from tests.worker.names import owned
from tests.worker.programs import LEASE_SECONDS, Client, Start, WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack
from worker.claim import Claim, Submit
from worker.inbox import Inbox
from worker.loaded_pipelines import LoadedPipelines
from worker.loading import load

OpenInbox = Callable[..., Inbox]


class Bench:
    """Shorthands for what nearly every test of the queue does."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.images = ImageStore(settings.store_address, settings.store_timeout_seconds)
        self.queue = JobQueue(redis, settings, self.images)

    def submit(self, **fields: object) -> str:
        body = {"class_label": "torus", "guidance_scale": 2, "seed": 5} | fields
        return self.queue.submitter.submit(JobRequest.parse(json.dumps(body).encode())).job.id

    def claim(self, inbox: Inbox, room: int = 8) -> list[Claim]:
        return [each.claim for each in inbox.poll(room=room, wait_seconds=0) if isinstance(each, Submit)]

    def finish(self, inbox: Inbox, claim: Claim) -> bool:
        images = [
            self.images.put(claim.job_id, claim.token, index, png(index)) for index in range(claim.request.num_images)
        ]
        return inbox.results.complete(claim, images, Usage(steps=25, device_seconds=0.1), "fingerprint")

    def events(self, job_id: str) -> list[str]:
        return [each.kind.value for each in replay(self.redis, job_id)]

    def status(self, job_id: str) -> str:
        return self.queue.get(job_id).status.value


@pytest.fixture
def open_inbox(redis: Redis, redis_server: RedisServer, settings: Settings) -> Iterator[OpenInbox]:
    """Opens inboxes as workers would, each on connections of its own."""
    clients: list[Redis] = []

    def open_(name: str = "cpu-0", **changes: object) -> Inbox:
        clients.append(redis_server.client())
        inbox = Inbox(clients[-1], settings.model_copy(update=changes), owned(name), [DEMO, DEMO_UNCOND])
        inbox.open()
        return inbox

    yield open_
    for client in clients:
        client.close()


@pytest.fixture
def inbox(open_inbox: OpenInbox) -> Inbox:
    return open_inbox()


@pytest.fixture
def bench(inbox: Inbox, redis: Redis, settings: Settings) -> Bench:
    return Bench(redis, settings)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stack(tmp_path_factory.mktemp("weights")).parent


@pytest.fixture
def worker_settings(redis_server: RedisServer, redis: Redis, tmp_path: Path, weights: Path) -> Settings:
    """Settings of workers; their Redis is empty, so that no start waits for the name of an earlier test's worker."""
    return Settings(
        data=tmp_path, redis_url=redis_server.address, weights=weights, lease_seconds=LEASE_SECONDS, heartbeat_seconds=1
    )


@pytest.fixture
def start(worker_settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts workers, and ends what a test leaves running."""
    started: list[WorkerProcess] = []

    def start_(name: str = "test-0", **variables: str) -> WorkerProcess:
        started.append(WorkerProcess(worker_settings, tmp_path, name, **variables))
        return started[-1]

    yield start_
    for each in started:
        each.end()


@pytest.fixture
def client(redis: Redis, worker_settings: Settings) -> Client:
    return Client(redis, worker_settings)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> LoadedPipelines:
    """The networks of a worker that runs in this process."""
    settings = Settings(data=tmp_path_factory.mktemp("data"), weights=weights, max_rows=4, pipelines=("demo",))
    return load(settings, torch.device("cpu"), "cpu-0")


@pytest.fixture(scope="session")
def warm_settings(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with running_redis() as server:
        yield Settings(data=tmp_path_factory.mktemp("warm"), redis_url=server.address, weights=weights)


@pytest.fixture(scope="session")
def warm_worker(warm_settings: Settings) -> Iterator[WorkerProcess]:
    """A worker for all tests that ask for nothing special of it and leave it as it is, on a Redis where it is alone."""
    worker = WorkerProcess(warm_settings, warm_settings.data, "warm")
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.end()


@pytest.fixture
def warm(warm_worker: WorkerProcess, warm_settings: Settings) -> Iterator[Client]:
    """Posts jobs to that worker."""
    with Redis.from_url(str(warm_settings.redis_url)) as redis:
        yield Client(redis, warm_settings)
    assert warm_worker.process.poll() is None, warm_worker.output
