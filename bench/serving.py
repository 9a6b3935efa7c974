"""The whole service against the bare engine and against a job-at-a-time worker: python -m bench.serving.

It starts the shipped demo stack as `make up` does, on free ports, and sends 64 mixed jobs through HTTP and the queue.
It also measures the time until a killed worker's jobs run again. Each figure is the median of a ratio or a time over
`--repeats` runs. It writes bench/results/serving.json.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil
import torch
from redis import Redis
from rich.console import Console

from bench.machine import machine
from bench.names import KILLED, RATE, SPEED
from bench.one_at_a_time import seconds_one_at_a_time
from bench.step_profile import Steps
from engine.engine import Engine, run_to_end
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.trajectory import Guidance, StagePlan, StagePlans
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import work_of
from jobs.settings import Settings
from models.host_memory import keep_freed_memory
from models.networks.precision import best_precision
from models.stack import load_stack
from standalone.demo import heartbeat_after, running_stack
from standalone.embedded import with_free_port
from standalone.log import Log
from worker.warmup import measure_steps

ROOT = Path(__file__).parent
ROWS = 32
JOBS = 64
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
POLL_SECONDS = 0.5


def mixed_jobs(seed: int = 1) -> list[dict[str, Any]]:
    """Guided jobs of all classes, scales, step counts and samplers, some of several images, some not enlarged."""
    draw = random.Random(seed)
    return [
        {
            "class_label": index % 10,
            "guidance_scale": draw.choice((0.5, 1.0, 2.0, 4.0)),
            "steps": draw.choice((10, 25, 50)),
            "sampler": draw.choice(("ddim", "ddpm", "dpmpp_2m")),
            "n": draw.choice((1, 1, 1, 2, 4)),
            "upsample": draw.random() < 0.5,
            "seed": index,
        }
        for index in range(JOBS)
    ]


class BareEngine:
    """The demo stack in this process."""

    def __init__(self) -> None:
        keep_freed_memory()  # like the worker
        stack = load_stack(ROOT.parent / "weights" / "demo")
        self.pipelines = {name: Pipeline(spec, stack) for name, spec in stack.pipelines.items()}
        self.engine = Engine(build_stages([stack], ROWS, precision=best_precision(torch.device("cpu"))), ROWS)
        measure_steps(self.engine)

    def row_seconds(self, work: dict[str, int]) -> float:
        """Device seconds that `work` (row steps by stage) takes in full batches."""
        pipeline = self.pipelines["demo"]
        return sum(steps * self.engine.costs.row_seconds(pipeline.stage_key(stage)) for stage, steps in work.items())

    def homogeneous_rate(self) -> float:
        """Estimated seconds of work done per second, for one batch of equal images: the base, then the upsampler."""
        pipeline, started = self.pipelines["demo"], time.perf_counter()
        base, upsample = StagePlan(BASE, "ddim", 25), StagePlan(UPSAMPLE, "ddpm", 6)
        images = [
            pipeline.image("bench", index, 1, Guidance(index % 10, 2.0), StagePlans(base, upsample))
            for index in range(ROWS)
        ]
        run_to_end(self.engine, images)
        work = {BASE: ROWS * base.num_evaluations, UPSAMPLE: ROWS * upsample.num_evaluations}
        return self.row_seconds(work) / (time.perf_counter() - started)


async def posted(client: httpx2.AsyncClient, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    answers = await asyncio.gather(*(client.post("/v1/jobs", json=body) for body in bodies))
    return [answer.raise_for_status().json() for answer in answers]


async def now(client: httpx2.AsyncClient, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The present state of jobs, in the order of the given ids."""
    page = (await client.get("/v1/jobs", params={"limit": 100})).raise_for_status().json()
    found = {job["id"]: job for job in page["data"]}
    return [found[each] for each in ids]


def processor_seconds(run_dir: Path) -> dict[str, float]:
    """Processor seconds of the programs' processes and of this client process so far."""
    pids = {path.stem.partition("-")[0]: int(path.read_text()) for path in run_dir.glob("*.pid")}
    used = {name: psutil.Process(pid).cpu_times() for name, pid in (pids | {"client": os.getpid()}).items()}
    return {name: times.user + times.system for name, times in used.items()}


async def through_the_service(client: httpx2.AsyncClient, bare: BareEngine, run_dir: Path) -> dict[str, Any]:
    """Rate while a full batch was possible, total time, processor time by process, and the resolved jobs."""
    before = await steps_so_far(client)
    started, used = time.perf_counter(), processor_seconds(run_dir)
    ids = [job["id"] for job in await posted(client, mixed_jobs())]
    seen: list[tuple[float, float, int]] = []  # time, work done, images left
    while True:
        jobs = await now(client, ids)
        requests = [ResolvedRequest.model_validate(job["request"], strict=False) for job in jobs]
        work = [bare.row_seconds(work_of(request)) for request in requests]
        done = sum(each * job["progress"]["fraction"] for each, job in zip(work, jobs, strict=True))
        left = sum(job["request"]["n"] for job in jobs if job["status"] not in ENDED)
        seen.append((time.perf_counter() - started, done, left))
        if left == 0:
            break
        await asyncio.sleep(POLL_SECONDS)
    assert all(job["status"] == "completed" for job in jobs)
    used = {name: each - used[name] for name, each in processor_seconds(run_dir).items()}
    steps = (await steps_so_far(client)).since(before)
    seconds = max(job["ended_at"] for job in jobs) - min(job["created_at"] for job in jobs)
    begin, end = seen[0], [each for each in seen if each[2] >= ROWS][-1]
    return {
        "rate": (end[1] - begin[1]) / (end[0] - begin[0]),
        "seconds": seconds,
        "profile": profile(bare, steps, used, seconds),
        "requests": requests,
    }


async def steps_so_far(client: httpx2.AsyncClient) -> Steps:
    """The worker's steps so far, after a heartbeat, which reports the last ones."""
    await heartbeat_after(client, time.time())
    return Steps.of((await client.get("/metrics")).raise_for_status().text)


def profile(bare: BareEngine, steps: Steps, used: dict[str, float], seconds: float) -> dict[str, float]:
    """The profile of the whole run: factors of its rate, and shares of the machine's processors."""
    pipeline = bare.pipelines["demo"]
    losses = steps.losses(lambda stage: bare.engine.costs.row_seconds(pipeline.stage_key(stage)), ROWS, seconds)
    cores = seconds * torch.get_num_threads()
    shares = {f"processors taken by the {name}": each / cores for name, each in used.items()}
    return {name: round(each, 3) for name, each in (losses | shares).items()}


async def killed(client: httpx2.AsyncClient, run_dir: Path, repeats: int) -> list[float]:
    """Seconds from the restart of a killed worker until all its jobs run again."""
    waits = []
    for _ in range(repeats):
        bodies = [{"class_label": index, "steps": 250, "upsample": False} for index in range(8)]
        ids = [job["id"] for job in await posted(client, bodies)]
        await until(client, ids, lambda jobs: all(job["progress"]["step"] > 2 for job in jobs))
        killed_at = time.time()
        kill_worker(run_dir)
        again = await until(client, ids, lambda jobs: all(job["attempt"] == 2 and job["started_at"] for job in jobs))
        waits.append(max(job["started_at"] for job in again) - await up_since(client, killed_at))
        for each in ids:
            await client.delete(f"/v1/jobs/{each}")
    return waits


async def up_since(client: httpx2.AsyncClient, killed_at: float) -> float:
    """Time of the new worker's readiness after a kill; the killed worker's own record stays until its lease ends."""
    while True:
        (worker,) = (await client.get("/v1/workers")).raise_for_status().json()["data"]
        if worker["started_at"] > killed_at:
            return float(worker["started_at"])
        await asyncio.sleep(0.1)


def kill_worker(run_dir: Path) -> None:
    (pid_file,) = run_dir.glob("worker-*.pid")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def until(
    client: httpx2.AsyncClient, ids: Sequence[str], holds: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    while not holds(jobs := await now(client, ids)):
        await asyncio.sleep(0.1)
    return jobs


async def measure(repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="adm-bench-") as data:
        bare = BareEngine()
        settings = Settings(data=Path(data), port=0, max_rows=ROWS)
        settings.run_dir.mkdir(parents=True)
        settings = with_free_port(settings)
        log_path = Path(data) / "stack.log"
        with log_path.open("w") as lines:
            async with running_stack(settings, log_path, Log(lines, answers=lines), Console()) as client:
                runs, profiles = [], []
                for _ in range(repeats):
                    alone = bare.homogeneous_rate()
                    served = await through_the_service(client, bare, settings.run_dir)
                    redis = Redis.from_url(settings.redis_address)
                    one_by_one = seconds_one_at_a_time(
                        redis, bare.engine, bare.pipelines, Path(data) / "one", served["requests"]
                    )
                    runs.append((served["rate"] / alone, one_by_one / served["seconds"]))
                    profiles.append(served["profile"] | {"bare engine's rate, relative to its first step times": alone})
                    print("share of its rate, speed-up over one job at a time:", runs[-1], profiles[-1], flush=True)
                waits = await killed(client, settings.run_dir, repeats)
    return {
        RATE: round(median(r for r, _ in runs), 3),
        SPEED: round(median(r for _, r in runs), 3),
        "where the time of those jobs goes": {
            name: round(median(each[name] for each in profiles), 3) for name in profiles[0]
        },
        KILLED: round(median(waits), 3),
        "repeats": repeats,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    found = asyncio.run(measure(parser.parse_args(arguments).repeats))
    print(json.dumps(found, indent=1))
    (ROOT / "results" / "serving.json").write_text(json.dumps(machine() | {"found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
