"""Measures the idle time of the engine between steps during other work of a worker: python -m bench.gaps.

A real worker runs the shipped demo stack with steps of 32 rows and its own Redis server. A gap is the time from the end
of a step to the start of the next, while there are rows to step. Measured without other work, and while

- sixteen pictures of 49 megapixels arrive in one job, stored in full, as in services that did not reduce uploads;
- checkpoints of 64 MiB are written, each to a store that takes five seconds;
- Redis hangs for twenty seconds, in which images finish; and the same while it refuses connections.

Each of the longest gaps is compared with the median step of the same time. Writes bench/results/gaps.json.
"""

import argparse
import hashlib
import io
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import torch
from PIL import Image
from redis.exceptions import RedisError
from torch import Tensor

from bench.machine import machine
from engine.steps import StepReport
from engine.trajectory import ImageState
from jobs import logs
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest
from jobs.queue.job_queue import JobQueue
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.files import FileRecord, FileStore
from jobs.storage.images import ImageStore
from tests.conftest import RedisServer
from worker.attempts import Attempt
from worker.inbox import Inbox
from worker.job_state import JobState
from worker.loaded_pipelines import LoadedPipelines
from worker.loading import load, use_host
from worker.loop import Worker
from worker.name import Name, Start
from worker.offers import offer
from worker.stopping import Stopping

ROOT = Path(__file__).parent
SECONDS = 20.0  # for which Redis is unavailable
SLOW_STORE_SECONDS = 5.0
PICTURES, SIDE_PX = 16, 7000
FILLER_BYTES = 62 << 20  # added to the demo stack's states, below the limit of 64 MiB
PATIENCE_SECONDS = 600.0


@dataclass
class Clock:
    """Records the times of steps, and the gaps between consecutive ones."""

    steps: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    ended: float | None = None  # end of the last step, if rows were left

    def watch(self, loaded: LoadedPipelines) -> None:
        engine, iterate = loaded.engine, loaded.engine.iterate

        def timed(*, ahead: bool = True) -> StepReport | None:
            began = time.perf_counter()
            if self.ended is not None and engine.busy:
                self.gaps.append(began - self.ended)
            report = iterate(ahead=ahead)
            now = time.perf_counter()
            if report is not None:
                self.steps.append(now - began)
            self.ended = now if engine.busy else None
            return report

        engine.iterate = timed  # type: ignore[method-assign]  # to measure it where it is called

    def reset(self) -> None:
        self.steps, self.gaps = [], []

    def found(self) -> dict[str, Any]:
        step = statistics.median(self.steps)
        return {
            "steps": len(self.steps),
            "median_step_ms": round(step * 1000, 1),
            "median_gap_ms": round(statistics.median(self.gaps) * 1000, 2),
            "longest_gap_ms": round(max(self.gaps) * 1000, 1),
            "longest_gap_in_steps": round(max(self.gaps) / step, 3),
        }


class Bench:
    """One worker on a thread, with a job of 32 rows that keeps it busy."""

    def __init__(self, folder: Path, server: RedisServer, max_rows: int) -> None:
        self.server, self.max_rows = server, max_rows
        self.settings = Settings(
            data=folder, redis_url=server.address, max_rows=max_rows, pipelines=("demo",), max_upload_bytes=1 << 30
        )
        logs.configure(self.settings)
        use_host(self.settings)
        self.loaded = load(self.settings, torch.device("cpu"), "bench")
        self.clock = Clock()
        self.clock.watch(self.loaded)
        self.redis, self.store = server.client(), ImageStore(self.settings.store_address)
        self.queue = JobQueue(server.client(), self.settings, self.store)

    @contextmanager
    def serving(self, **changes: object) -> Iterator[None]:
        settings = self.settings.model_copy(update=changes)
        stopping, redis = Stopping(), self.server.client()
        pipelines = [offer(each) for each in self.loaded.pipelines.values()]
        inbox = Inbox(redis, settings, Name("bench", Start.current()), pipelines, stopping=stopping)
        inbox.open()
        files = FileStore(redis, settings, self.store.objects)
        thread = threading.Thread(target=Worker(self.loaded, inbox, self.store, files, settings).run, args=(stopping,))
        thread.start()
        busy = self.submit(n=self.max_rows, steps=1000, upsample=False, priority="low")
        try:
            self.wait(lambda: len(self.clock.steps) > 3)
            self.clock.reset()
            yield
        finally:
            self.wait(lambda: self.answers() and self.queue.cancel(busy) is not None)
            self.wait(lambda: self.queue.get(busy).status.is_final)
            stopping.set()
            thread.join()
            inbox.close()

    def submit(self, **fields: object) -> str:
        body = {"class_label": 1, "guidance_scale": 2, "seed": 1} | fields
        given = {name: value for name, value in body.items() if value is not None}
        return self.queue.submitter.submit(JobRequest.parse(json.dumps(given).encode())).job.id

    def answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError("the worker did not reach the expected state")
            time.sleep(0.2)

    def completed(self, job_ids: list[str]) -> bool:
        return all(self.queue.get(each).status is JobStatus.COMPLETED for each in job_ids)

    def alone(self) -> dict[str, Any]:
        with self.serving():
            time.sleep(SECONDS)
            return self.clock.found()

    def pictures(self) -> dict[str, Any]:
        """One job of sixteen pictures, each decoded by itself."""
        ids = [self._upload(number) for number in range(PICTURES)]
        with self.serving():
            began = time.perf_counter()
            job_id = self.submit(kind="variation", images=ids, steps=4, strength=0.5, priority="high")
            self.wait(lambda: self.completed([job_id]))
            return self.clock.found() | {"seconds_until_completed": round(time.perf_counter() - began, 1)}

    def _upload(self, number: int) -> str:
        """Store a picture under its own name."""
        png = self._png()
        record = FileRecord(
            id=f"file-{number:032x}",
            sha256="0" * 64,
            width=SIDE_PX,
            height=SIDE_PX,
            bytes=len(png),
            key=f"files/file-{number:032x}/{number}.png",
            png_sha256=hashlib.sha256(png).hexdigest(),
        )
        self.store.objects.put(record.key, png)
        self.redis.set(keys.file(record.id), record.model_dump_json(), ex=3600)
        return record.id

    def _png(self) -> bytes:
        if not hasattr(self, "_encoded"):
            noise = Image.effect_noise((SIDE_PX // 10, SIDE_PX // 10), 60).resize((SIDE_PX, SIDE_PX))
            buffer = io.BytesIO()
            Image.merge("RGB", (noise, noise, noise)).save(buffer, "PNG", compress_level=1)
            self._encoded = buffer.getvalue()
        return self._encoded

    def checkpoints(self) -> dict[str, Any]:
        """Checkpoints of the busy job, padded to the limit, as for larger networks."""
        put, state, written = obstore.put, Attempt.state, [0]
        filler = torch.randn(FILLER_BYTES // 4)

        def filled(attempt: Attempt, in_flight: Mapping[int, ImageState]) -> JobState:
            known = state(attempt, in_flight)
            latents: dict[int, Tensor] = known.latents | {-1: filler}
            return replace(known, latents=latents)

        def slow_put(store: Any, key: str, data: bytes, **options: Any) -> Any:
            written[0] += len(data) >= FILLER_BYTES
            time.sleep(SLOW_STORE_SECONDS)
            return put(store, key, data, **options)

        Attempt.state, obstore.put = filled, slow_put  # type: ignore[method-assign, assignment] # to measure with them
        try:
            with self.serving(checkpoint_seconds=0.001, drain_seconds=0):
                time.sleep(4 * SLOW_STORE_SECONDS)
                return self.clock.found() | {"checkpoints": written[0]}
        finally:
            Attempt.state, obstore.put = state, put  # type: ignore[method-assign]

    def redis_unavailable(self, *, hangs: bool) -> dict[str, Any]:
        """Jobs of one image each, which finish one after another during the outage."""
        with self.serving():
            finish = [self.submit(steps=steps, upsample=False) for steps in range(4, 20)]
            self.wait(lambda: all(self.queue.get(each).status is not JobStatus.QUEUED for each in finish))
            self.clock.reset()
            if hangs:
                pid = int(self.redis.info("server")["process_id"])
                os.kill(pid, signal.SIGSTOP)
            else:
                self.server.stop()
            time.sleep(SECONDS)
            found = self.clock.found()
            if hangs:
                os.kill(pid, signal.SIGCONT)
            else:
                self.server.start()
            self.wait(lambda: self.answers() and self.completed(finish))
            return found


def measure(folder: Path, max_rows: int) -> dict[str, Any]:
    server = RedisServer(folder)
    server.start()
    try:
        bench, found = Bench(folder, server, max_rows), dict[str, Any]()
        scenes: dict[str, Callable[[], dict[str, Any]]] = {
            "alone": bench.alone,
            "sixteen pictures of 49 megapixels": bench.pictures,
            "checkpoints of 64 MiB to a store that takes 5 s": bench.checkpoints,
            "Redis hangs for 20 s": partial(bench.redis_unavailable, hangs=True),
            "Redis refuses connections for 20 s": partial(bench.redis_unavailable, hangs=False),
        }
        for name, measured in scenes.items():
            found[name] = measured()
            print(json.dumps({name: found[name]}), flush=True)
        return found
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=32)
    rows = parser.parse_args().rows
    with (
        tempfile.TemporaryDirectory(prefix="adm-", dir="/tmp") as folder,
        (Path(folder) / "log").open("w") as log,
        redirect_stderr(log),
    ):
        found = measure(Path(folder), rows)
    (ROOT / "results" / "gaps.json").write_text(json.dumps(machine() | {"rows": rows, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
