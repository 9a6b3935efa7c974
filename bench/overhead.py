"""What a worker adds to a job beside its steps: python -m bench.overhead [--jobs N].

A real worker on a real server, with networks so small that steps hardly count. It is the processor time of its threads,
so without what they wait for the network and the disk, less that of the steps; PNG encoding and logging are part of it.
Writes bench/results/overhead.json.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from redis import Redis

from bench.machine import machine
from engine.engine import StepReport
from jobs.files import FileStore
from jobs.images import ImageStore
from jobs.job import JobStatus
from jobs.queue import JobQueue
from jobs.request import JobRequest
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.worker.tiny_stack import write_tiny_stack
from worker.inbox import Inbox
from worker.loop import Held, Worker
from worker.main import load
from worker.offers import offer

ROOT = Path(__file__).parent


class StepClock:
    """Adds up the processor time of an engine's steps."""

    def __init__(self, held: Held) -> None:
        self.seconds, self._step = 0.0, held.engine.step
        held.engine.step = self._timed  # type: ignore[method-assign]  # to measure it where it is called

    def _timed(self) -> StepReport | None:
        started = time.thread_time()
        report = self._step()
        self.seconds += time.thread_time() - started
        return report


def others_time() -> float:
    """Processor time of this process's threads but the calling one, which only looks on."""
    return time.process_time() - time.thread_time()


def measure(jobs: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of the worker's threads a job, claim to finish."""
    write_tiny_stack(folder / "weights")
    server = RedisServer(folder)
    server.start()
    try:
        settings = Settings(data=folder, weights=folder / "weights", redis_url=server.address, threads=1, max_rows=32)
        torch.set_num_threads(1)
        held = load(settings, torch.device("cpu"), "bench")
        redis, store = Redis.from_url(server.address), ImageStore(settings.store_address)
        inbox = Inbox(redis, settings, "bench", [offer(each) for each in held.pipelines.values()], held.registry)
        inbox.open()
        queue, clock, stopping = JobQueue(server.client(), settings, store), StepClock(held), threading.Event()
        worker = Worker(held, inbox, store, FileStore(redis, settings, store.objects), settings)
        body = json.dumps({"class_label": 1, "steps": 1, "upsample": False, "guidance_scale": 0}).encode()
        for _ in range(jobs):
            queue.submit(JobRequest.parse(body))
        thread = threading.Thread(target=worker.run, args=(stopping,))
        started = others_time()
        thread.start()
        while queue.counts()[JobStatus.COMPLETED] < jobs:
            time.sleep(0.2)
        stopping.set()
        thread.join()
        inbox.close()
        return {"jobs": jobs, "ms_per_job": round(1000 * (others_time() - started - clock.seconds) / jobs, 3)}
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    with tempfile.TemporaryDirectory(prefix="adm-") as folder:
        found = measure(parser.parse_args().jobs, Path(folder))
    print(json.dumps(found))
    (ROOT / "results" / "overhead.json").write_text(json.dumps(machine() | {"found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
