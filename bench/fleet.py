"""Scales real workers by queued work, and compares with a simulation of the same: python -m bench.fleet.

    [--seconds 180] [--jobs 70] [--seed 1]

The service, Redis and workers run as programs of this machine, on the shipped demo stack with one thread each. The
autoscaler of `bench.autoscaling` reads /metrics like KEDA's query, starts workers, and stops them by SIGTERM. Its times
are those of the shipped rule, shortened, so that some minutes represent a day. The simulation gets the same arrivals
and the measured step costs and start times. Reports both, and their difference; writes
bench/results/fleet.json.
"""

import argparse
import json
import random
import re
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, quantiles
from threading import Thread
from typing import Any

import httpx2

from bench.autoscaling import Autoscaler, Rule
from bench.machine import machine
from bench.simulate_fleet import Scaled
from bench.simulate_load import BURST, CALM, SimulatedJob, make_pipelines
from jobs.contract.request import JobRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import evaluations_of, work_of
from jobs.settings import Settings
from jobs.settings.fields import SHIPPED_WEIGHTS
from jobs.views.fleet import StepMs
from tests.conftest import running_redis
from tests.service.conftest import running_service
from tests.warm import start_cold
from tests.worker.programs import WorkerProcess

RESULTS = Path(__file__).parent / "results/fleet.json"
RULE = Rule(
    threshold_seconds=10,
    activation_seconds=2,
    patience_seconds=30,
    polling_seconds=1,
    cooldown_seconds=15,
    stabilization_seconds=15,
    up=2,
    period_seconds=10,
    max_replicas=3,
)
MAX_ROWS = 32
DRAIN_SECONDS = 5.0
PRIVATE = {"ADM_THREADS": "1", "ADM_MAX_ROWS": str(MAX_ROWS), "ADM_DRAIN_SECONDS": str(DRAIN_SECONDS)}


@dataclass
class Arrival:
    after: float  # seconds
    body: dict[str, Any]
    id: str = ""


@dataclass
class Replica:
    """A worker with the times of its start, readiness and end."""

    process: WorkerProcess
    started: float
    ready: float | None = None
    stopped: float | None = None
    gone: float | None = None

    def look(self, now: float) -> None:
        if self.ready is None and '"ready"' in self.process.output:
            self.ready = now
        if self.gone is None and self.process.process.poll() is not None:
            self.gone = now


@dataclass
class Fleet:
    """The present and past workers, and the costs of their steps."""

    settings: Settings
    folder: Path
    replicas: list[Replica] = field(default_factory=list)
    step_ms: defaultdict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    most: int = 1

    def start(self, now: float) -> Replica:
        name = f"worker-{len(self.replicas)}"
        self.replicas.append(Replica(WorkerProcess(self.settings, self.folder, name, start_cold, **PRIVATE), now))
        return self.replicas[-1]

    @property
    def wanted(self) -> list[Replica]:
        return [each for each in self.replicas if each.stopped is None]

    def scale(self, client: httpx2.Client, autoscaler: Autoscaler, now: float) -> None:
        """Apply the rule once."""
        for each in self.replicas:
            each.look(now)
        text = client.get("/metrics").raise_for_status().text
        queued = max(values(text, "adm_pipeline_queued_seconds"), default=0)
        queued *= max(1.0, *values(text, "adm_pipeline_workers"))
        here = self.wanted
        wanted = autoscaler.decide(now, len(here), queued, int(sum(values(text, "adm_worker_rows_in_flight"))))
        self.most = max(self.most, wanted)
        for _ in range(wanted - len(here)):
            self.start(now)
        for each in here[wanted:]:
            each.process.process.send_signal(signal.SIGTERM)
            each.stopped = now
        for worker in client.get("/v1/workers").raise_for_status().json()["data"]:
            for stage, by_shape in worker["step_ms"].get("demo", {}).items():
                for shape, ms in by_shape.items():
                    self.step_ms[stage, int(shape)].append(ms)

    @property
    def mean_step_ms(self) -> StepMs:
        found: StepMs = defaultdict(dict)
        for (stage, shape), ms in sorted(self.step_ms.items()):
            found[stage][shape] = fmean(ms)
        return dict(found)

    def worker_seconds(self, began: float, end: float) -> float:
        lives = [(max(each.started, began), min(each.gone or end, end)) for each in self.replicas]
        return sum(max(0.0, until - since) for since, until in lives)

    def end(self) -> None:
        for each in self.replicas:
            each.process.end()


def values(text: str, name: str) -> list[float]:
    """Values of all samples of a metric."""
    return [float(each) for each in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)]


def make_arrivals(number: int, seconds: float, draw: random.Random) -> list[Arrival]:
    """Arrivals in calm periods and bursts, over `seconds`."""
    arrivals: list[Arrival] = []
    now, factor, until = 0.0, CALM, 0.0
    while len(arrivals) < number:
        if now >= until:
            factor = BURST if draw.random() < 1 / 4 else CALM
            until = now + draw.expovariate(8 / seconds)
        now += draw.expovariate(factor * number / seconds / 1.4)
        body = {"class_label": draw.randrange(10), "steps": draw.choice((10, 25, 50)), "n": draw.choice((1, 1, 2, 4))}
        arrivals.append(Arrival(now, body | {"seed": len(arrivals), "guidance_scale": draw.choice((0.0, 2.0))}))
    return arrivals


def post_all(client: httpx2.Client, arrivals: Sequence[Arrival], began: float) -> None:
    for each in arrivals:
        time.sleep(max(0.0, began + each.after - time.monotonic()))
        each.id = client.post("/v1/jobs", json=each.body).raise_for_status().json()["id"]


def run_real(arrivals: list[Arrival], folder: Path) -> tuple[dict[str, Any], Fleet]:
    """Serve the arrivals with real programs."""
    with running_redis() as server:
        settings = Settings(data=folder / "data", redis_url=server.address, weights=SHIPPED_WEIGHTS)
        fleet = Fleet(settings, folder)
        try:
            with (
                running_service(settings, start_cold) as (address, _, _),
                httpx2.Client(base_url=address, timeout=60) as client,
            ):
                first = fleet.start(time.monotonic())
                while first.ready is None:
                    first.look(time.monotonic())
                    assert first.gone is None, first.process.output
                    time.sleep(0.1)
                began, autoscaler = time.monotonic(), Autoscaler(RULE)
                poster = Thread(target=post_all, args=(client, arrivals, began))
                poster.start()
                while poster.is_alive() or unended(client):
                    fleet.scale(client, autoscaler, time.monotonic())
                    time.sleep(RULE.polling_seconds)
                end = time.monotonic()
                jobs = [client.get(f"/v1/jobs/{each.id}").raise_for_status().json() for each in arrivals]
        finally:
            fleet.end()
    assert all(each["status"] == "completed" for each in jobs)
    waits = [each["started_at"] - each["created_at"] for each in jobs if each["attempt"] == 1]
    return {
        "worker_seconds": round(fleet.worker_seconds(began, end), 1),
        "most_workers": fleet.most,
        "starts": len(fleet.replicas) - 1,
        "seconds": round(end - began, 1),
        "wait_seconds_mean": round(fmean(waits), 2),
        **spread([each["ended_at"] - each["created_at"] for each in jobs]),
    }, fleet


def unended(client: httpx2.Client) -> bool:
    statuses = [client.get("/v1/jobs", params={"status": each, "limit": 1}) for each in ("queued", "in_progress")]
    return any(each.raise_for_status().json()["data"] for each in statuses)


def run_simulated(arrivals: Sequence[Arrival], step_ms: StepMs, load_seconds: float) -> dict[str, Any]:
    (pipeline,) = make_pipelines(1)
    jobs = []
    for index, each in enumerate(arrivals):
        body = json.dumps(each.body | {"model": pipeline.id}).encode()
        request = resolve(JobRequest.parse(body), pipeline, lambda: 0)
        jobs.append(SimulatedJob(str(index), each.after, request, work_of(request), evaluations_of(request)))
    simulation = Scaled([pipeline], jobs, step_ms, Autoscaler(RULE), load_seconds, DRAIN_SECONDS)
    simulation.run()
    end = max(job.ends for job in jobs)
    return {
        "worker_seconds": round(simulation.worker_seconds(end), 1),
        "most_workers": simulation.most,
        "starts": len(simulation.lives) - 1,
        "seconds": round(end, 1),
        "wait_seconds_mean": round(fmean(job.claimed - job.arrives for job in jobs), 2),
        **spread([job.ends - job.arrives for job in jobs]),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "job_seconds_mean": round(fmean(seconds), 2),
        "job_seconds_median": round(median(seconds), 2),
        "job_seconds_p95": round(quantiles(seconds, n=20)[18], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--jobs", type=int, default=70)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    arrivals = make_arrivals(asked.jobs, asked.seconds, random.Random(asked.seed))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="adm-") as temporary:
        real, fleet = run_real(arrivals, Path(temporary))
        starts = [each.ready - each.started for each in fleet.replicas if each.ready is not None]
    simulated = run_simulated(arrivals, fleet.mean_step_ms, fmean(starts))
    report = vars(asked) | {
        "machine": machine(),
        "rule": asdict(RULE),
        "start_seconds": [round(each, 1) for each in starts],
        "step_ms": {stage: {n: round(ms, 1) for n, ms in each.items()} for stage, each in fleet.mean_step_ms.items()},
        "measured": real,
        "simulated": simulated,
        "error": {name: round(simulated[name] / real[name] - 1, 3) for name in real if real[name]},
    }
    print(json.dumps(report, indent=1))
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
