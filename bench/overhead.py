"""Measures a worker's own time per job, beside sampling: python -m bench.overhead [--jobs N].

A real worker on a real server, a queue full of jobs of one image and one step, and networks so small that steps take
almost no time. The figure is the processor time of all the worker's threads, user and kernel, from the first claim to
the last end. It includes calls of Redis, encoding and storing of PNGs, logging (to a file, as in production) and
heartbeats, but not Redis itself and waits for network and disk. The engine's steps and the drawing of starting noise
are subtracted. A few jobs run before, for work that is done only once. The figure varies between runs with the kernel's
time in the file system of $TMPDIR, and little in a memory file system. Writes bench/results/overhead.json.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from redis import Redis

from bench.machine import machine
from jobs import logs
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.job_queue import JobQueue
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from tests.conftest import RedisServer
from tests.worker.tiny_stack import write_tiny_stack
from worker.inbox import Inbox
from worker.loaded_pipelines import LoadedPipelines
from worker.loading import load
from worker.loop import Worker
from worker.name import Name, Start
from worker.offers import offer
from worker.stopping import Stopping

ROOT = Path(__file__).parent
ONCE = 64  # jobs before the measured ones
BODY = json.dumps({"class_label": 1, "steps": 1, "upsample": False, "guidance_scale": 0}).encode()

P = ParamSpec("P")
T = TypeVar("T")


class SamplingClock:
    """Sums the processor time of an engine's steps and of drawing starting noise."""

    def __init__(self, loaded: LoadedPipelines) -> None:
        self.seconds = 0.0
        loaded.engine.step = self._timed(loaded.engine.step)  # type: ignore[method-assign]  # to measure it where it is called
        for each in loaded.engine.stages.values():
            each.begin = self._timed(each.begin)  # type: ignore[method-assign]  # as above

    def _timed(self, call: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            started = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - started

        return timed


def others_time() -> float:
    """Processor time of this process' threads except the calling one, which only observes."""
    return time.process_time() - time.thread_time()


def serve(worker: Worker, queue: JobQueue, jobs: int) -> float:
    """Processor time of a worker for `jobs` jobs."""
    for _ in range(jobs):
        queue.submitter.submit(JobRequest.parse(BODY))
    to_come, stopping = queue.counts()[JobStatus.COMPLETED] + jobs, Stopping()
    thread = threading.Thread(target=worker.run, args=(stopping,))
    started = others_time()
    thread.start()
    while queue.counts()[JobStatus.COMPLETED] < to_come:
        time.sleep(0.2)
    stopping.set()
    thread.join()
    return others_time() - started


def measure(jobs: int, folder: Path) -> dict[str, Any]:
    """Milliseconds per job of the worker's threads without sampling, and of sampling."""
    write_tiny_stack(folder / "weights")
    server = RedisServer(folder)
    server.start()
    try:
        settings = Settings(data=folder, weights=folder / "weights", redis_url=server.address, threads=1, max_rows=32)
        logs.configure(settings)
        torch.set_num_threads(1)
        loaded = load(settings, torch.device("cpu"), "bench")
        redis, store = Redis.from_url(server.address), ImageStore(settings.store_address)
        inbox = Inbox(
            redis,
            settings,
            Name("bench", Start.current()),
            [offer(each) for each in loaded.pipelines.values()],
            loaded.registry,
        )
        inbox.open()
        files, queue = FileStore(redis, settings, store.objects), JobQueue(server.client(), settings, store)
        serve(Worker(loaded, inbox, store, files, settings), queue, ONCE)
        clock = SamplingClock(loaded)
        seconds = serve(Worker(loaded, inbox, store, files, settings), queue, jobs)
        inbox.close()
        ms = {"ms_per_job": seconds - clock.seconds, "sampling_ms_per_job": clock.seconds}
        return {"jobs": jobs} | {name: round(1000 * each / jobs, 3) for name, each in ms.items()}
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000)
    jobs = parser.parse_args().jobs
    with (
        tempfile.TemporaryDirectory(prefix="adm-") as folder,
        (Path(folder) / "log").open("w") as log,
        redirect_stderr(log),
    ):
        found = measure(jobs, Path(folder))
    print(json.dumps(found))
    (ROOT / "results" / "overhead.json").write_text(json.dumps(machine() | {"found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
