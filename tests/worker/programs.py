"""Real workers on the test's Redis, and what a client sees of their jobs."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from redis import Redis

from jobs.contract.job import Job, JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.job_queue import JobQueue
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from tests.conftest import running_redis
from tests.jobs.samples import replay
from tests.row_shapes import share_row_shapes
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.warm import WORKER, StartProgram, WarmProgram
from worker.loop import Worker
from worker.stopping import Stopping

LEASE_SECONDS = 60  # longer than a busy machine stalls a worker; tests of leases that end set their own


class WorkerProcess:
    """`adm worker`, or a module that stands for it, with its log in a file."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        name: str = "test-0",
        start: StartProgram = WarmProgram,
        /,
        *,
        module: str = "",
        **variables: str,
    ) -> None:
        share_row_shapes(settings.data)
        self.log_path = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ADM_")}
        environment |= {
            "ADM_DATA": str(settings.data),
            "ADM_REDIS_URL": str(settings.redis_url),
            "ADM_WEIGHTS": str(settings.weights),
            "ADM_WORKER_NAME": name,
            "ADM_MAX_ROWS": "8",
            "ADM_LEASE_SECONDS": str(LEASE_SECONDS),
            "ADM_HEARTBEAT_SECONDS": "1",
            "ADM_DEVICE": "cpu",
        }
        program, arguments = (module, []) if module else ("cli", ["worker"])
        with self.log_path.open("a") as log:
            self.process = start(program, arguments, environment | variables, log.fileno(), WORKER)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            return '"ready"' in self.log_path.read_text()

        eventually(ready, "the worker is ready")

    @property
    def output(self) -> str:
        return self.log_path.read_text()


Start = Callable[..., WorkerProcess]
"""Starts a worker of a name, with further variables; what is left running is ended with the test."""


class Client:
    """Posts jobs and looks at them, as the service does."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.store = ImageStore(settings.store_address, settings.store_timeout_seconds)
        self.queue = JobQueue(redis, settings, self.store)

    def submit(self, **fields: object) -> str:
        return self.post({"class_label": "torus", "guidance_scale": 2.0, "steps": 5, "seed": 5} | fields)

    def post(self, body: dict[str, object]) -> str:
        return self.queue.submitter.submit(JobRequest.parse(json.dumps(body).encode())).job.id

    def job(self, job_id: str) -> Job:
        return self.queue.get(job_id)

    def wait_all(self, job_ids: list[str]) -> list[Job]:
        eventually(lambda: all(self.job(each).status.is_final for each in job_ids), "every job ends")
        return [self.job(each) for each in job_ids]

    def wait_started(self, job_id: str) -> None:
        eventually(lambda: self.job(job_id).status is not JobStatus.QUEUED, "the job starts")

    def events(self, job_id: str) -> list[str]:
        return [each.kind.value for each in replay(self.redis, job_id)]

    def bytes_of(self, job: Job) -> list[bytes]:
        return [self.queue.image_bytes(job.id, self.queue.image(job.id, image.index).record) for image in job.images]


class Shift:
    """A worker that serves on a thread, and is stopped at the end."""

    def __init__(self, worker: Worker) -> None:
        self.stopping = Stopping()
        self.thread = Thread(target=worker.run, args=[self.stopping])
        self.thread.start()

    def end(self) -> None:
        self.stopping.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def running_worker(folder: Path, weights: Path, **changes: Any) -> Iterator[Settings]:
    """Settings of a Redis and of a worker on it, both of which run while the block does."""
    with running_redis() as server:
        settings = Settings(
            data=folder / "data",
            redis_url=server.address,
            weights=weights,
            device="cpu",
            max_rows=8,
            threads=1,
            **changes,
        )
        worker = WorkerProcess(settings, folder, ADM_THREADS="1", ADM_PIPELINES=",".join(settings.pipelines))
        try:
            worker.wait_ready()
            yield settings
        finally:
            worker.end()
