"""Simulates a day of arrivals on an autoscaled fleet and on fixed fleets: python -m bench.simulate_fleet.

    [--jobs 6000] [--slower 12] [--load-seconds 90] [--seed 1]

Workers start when the rule of `bench.autoscaling` wants them, after the time of a start, and stop as on SIGTERM: they
claim nothing, finish what the drain time allows, and requeue the rest with its progress. Jobs come by the hour of the
day, in calm periods and bursts. Step costs are those of `bench.simulate`, times `--slower`: about those of 256-pixel
networks on a GPU. Reports the fleet's cost and jobs' waits for the shipped rule, for rules that differ from it in one
number, and for fixed fleets. Writes bench/results/simulate_fleet.json.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.autoscaling import Autoscaler, Rule
from bench.simulate import SimulatedWorker, Simulation
from bench.simulate_load import BURST, CALM, STEP_MS, SimulatedJob, make_pipelines, make_request
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.work import RUNNING, evaluations_of, work_of
from jobs.settings import Settings
from jobs.views.fleet import StepMs

RESULTS = Path(__file__).parent / "results/simulate_fleet.json"
DAY = 86_400.0
DRAIN_SECONDS = Settings.model_fields["drain_seconds"].default
BURSTS_SECONDS = 300.0  # mean length of a calm period or a burst
BUSIEST_HOUR, NIGHT = 15, 0.02  # hour of the day; rate twelve hours later, relative to the busiest hour's
OTHER_STARTS_SECONDS = (30.0, 300.0)
FIXED = (1, 2, 3, 4)  # workers
CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "half the threshold": {"threshold_seconds": 30.0},
    "twice the threshold": {"threshold_seconds": 120.0},
    "cooldown of a start's time": {"cooldown_seconds": 90.0},
    "cooldown of 20 minutes": {"cooldown_seconds": 1200.0},
    "no stabilization": {"stabilization_seconds": 0.0},
    "never to zero": {"min_replicas": 1},
    "a replica for each batch in flight": {"rows": 32},
    "by queued work alone": {"rows": 1 << 30},
}


@dataclass
class Life:
    """The start and the end of a worker, between which it costs."""

    started: float
    stopped: float = math.inf  # time of its stop signal
    gone: float = math.inf


class Tick:
    """The event of a decision of the autoscaler."""


class Scaled(Simulation):
    """The simulation with autoscaled workers."""

    def __init__(
        self,
        pipelines: list[PipelineInfo],
        jobs: list[SimulatedJob],
        step_ms: StepMs,
        autoscaler: Autoscaler,
        load_seconds: float,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        super().__init__(1, pipelines, jobs, step_ms)
        self.autoscaler, self.load_seconds, self.drain_seconds = autoscaler, load_seconds, drain_seconds
        self.lives = {id(self.workers[0]): Life(0.0)}
        self.everyone = list(self.workers)  # includes stopped ones, so that their ids stay in use
        self.handed_back, self.unended, self.most, self.idle_at_zero = 0, len(jobs), 1, 0.0
        self._at(0.0, Tick())

    def _happen(self, now: float, what: object) -> None:
        if isinstance(what, Tick):
            self._scale(now)
            if self.unended:
                self._at(now + self.autoscaler.rule.polling_seconds, what)
        elif not isinstance(what, SimulatedWorker) or self.lives[id(what)].gone == math.inf:
            super()._happen(now, what)

    def _scale(self, now: float) -> None:
        here = [each for each in self.workers if self.lives[id(each)].stopped == math.inf]
        (name,) = self.names
        # in one worker's time, like the rule's query of the metric
        queued = self.estimator.queued_seconds(self._backlog(name)) or 0.0
        rows = sum(len(each.left) for each in self.workers)
        wanted = self.autoscaler.decide(now, len(here), queued, rows)
        self.most = max(self.most, wanted)
        if not self.workers:
            self.idle_at_zero += self.autoscaler.rule.polling_seconds
        for _ in range(wanted - len(here)):
            worker = self._worker()
            worker.busy = True  # loading
            self.workers.append(worker)
            self.everyone.append(worker)
            self.lives[id(worker)] = Life(now)
            self._at(now + self.load_seconds, worker)
        for worker in here[wanted:]:  # a StatefulSet stops its highest ordinals
            self.lives[id(worker)].stopped = now
            if not worker.left:
                self._leave(worker, now)

    def _next_step(self, worker: SimulatedWorker, now: float) -> None:
        life = self.lives[id(worker)]
        if life.stopped < math.inf and (not worker.left or now >= life.stopped + self.drain_seconds):
            self._leave(worker, now)
        else:
            super()._next_step(worker, now)

    def _take(self, worker: SimulatedWorker, now: float) -> None:
        if self.lives[id(worker)].stopped == math.inf:
            super()._take(worker, now)

    def _leave(self, worker: SimulatedWorker, now: float) -> None:
        """Requeue a worker's jobs at the front, with the remaining steps of their images."""
        self.lives[id(worker)].gone = now
        self.workers.remove(worker)
        for job in reversed(list(worker.jobs.values())):
            job.left = {index: left for (job_id, index), left in worker.left.items() if job_id == job.id}
            self._count(job, RUNNING, -1)
            self._count(job, job.request.priority, 1)
            self.queues[job.request.priority][job.request.model].requeue(job, job.caller)
            self.handed_back += 1
        for each in [one for one in self.workers if not one.busy]:
            self._next_step(each, now)

    def _end_image(self, worker: SimulatedWorker, key: tuple[str, int], now: float) -> None:
        job = worker.jobs[key[0]]
        super()._end_image(worker, key, now)
        self.unended -= job.images_left == 0

    def worker_seconds(self, end: float) -> float:
        """Worker seconds of the fleet until then."""
        return sum(max(0.0, min(life.gone, end) - life.started) for life in self.lives.values())


def rate_at(seconds: float) -> float:
    """The rate of arrivals at a time of the day, relative to the busiest hour."""
    hours = seconds / 3600 - BUSIEST_HOUR
    return NIGHT + (1 - NIGHT) * (0.5 + 0.5 * math.cos(hours * math.pi / 12)) ** 2


def make_day(number: int, pipeline: PipelineInfo, draw: random.Random) -> list[SimulatedJob]:
    """About `number` jobs over a day, in calm periods and bursts."""
    mean = sum(rate_at(hour * 3600.0) for hour in range(24)) / 24
    busiest = number / DAY / mean * BURST
    jobs: list[SimulatedJob] = []
    now, factor, until = 0.0, CALM, 0.0
    while (now := now + draw.expovariate(busiest)) < DAY:
        if now >= until:
            factor = BURST if draw.random() < 1 / 7 else CALM
            until = now + draw.expovariate(1 / BURSTS_SECONDS)
        if draw.random() < rate_at(now) * factor / BURST:
            request = make_request(draw, pipeline)
            jobs.append(SimulatedJob(str(len(jobs)), now, request, work_of(request), evaluations_of(request)))
    return jobs


def measured(jobs: Sequence[SimulatedJob]) -> dict[str, Any]:
    """Jobs' waits for a worker, and times from arrival to end."""
    waits = quantiles((job.claimed - job.arrives for job in jobs), n=100)
    takes = quantiles((job.ends - job.arrives for job in jobs), n=100)
    return {
        "wait_seconds": {f"p{p}": round(waits[p - 1], 1) for p in (50, 95, 99)},
        "job_seconds": {f"p{p}": round(takes[p - 1], 1) for p in (50, 95, 99)},
    }


def run_scaled(jobs: list[SimulatedJob], step_ms: StepMs, rule: Rule, load_seconds: float) -> dict[str, Any]:
    simulation = Scaled(make_pipelines(1), jobs, step_ms, Autoscaler(rule), load_seconds)
    simulation.run()
    return measured(jobs) | {
        "worker_hours": round(simulation.worker_seconds(max(DAY, *(job.ends for job in jobs))) / 3600, 2),
        "starts": len(simulation.lives) - 1,
        "most_workers": simulation.most,
        "hours_at_zero": round(simulation.idle_at_zero / 3600, 2),
        "jobs_handed_back": simulation.handed_back,
    }


def run_fixed(jobs: list[SimulatedJob], step_ms: StepMs, workers: int) -> dict[str, Any]:
    Simulation(workers, make_pipelines(1), jobs, step_ms).run()
    return measured(jobs) | {"worker_hours": workers * DAY / 3600}


def fresh(jobs: Sequence[SimulatedJob]) -> list[SimulatedJob]:
    """Copies of the arrivals, without any progress."""
    return [replace(each, claimed=0.0, ends=0.0, left={}) for each in jobs]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=6000)
    parser.add_argument("--slower", type=float, default=12.0)
    parser.add_argument("--load-seconds", type=float, default=90.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    step_ms = {stage: {rows: asked.slower * ms for rows, ms in by_shape.items()} for stage, by_shape in STEP_MS.items()}
    day, started = make_day(asked.jobs, make_pipelines(1)[0], random.Random(asked.seed)), time.monotonic()
    found: dict[str, Any] = {}
    for name, changes in CHANGES.items():
        found[name] = run_scaled(fresh(day), step_ms, replace(Rule(), **changes), asked.load_seconds)
        print(name, json.dumps(found[name]), flush=True)
    for load_seconds in OTHER_STARTS_SECONDS:
        found[f"a start takes {load_seconds:g} s"] = run_scaled(fresh(day), step_ms, Rule(), load_seconds)
    for workers in FIXED:
        found[f"fixed at {workers}"] = run_fixed(fresh(day), step_ms, workers)
        print(workers, json.dumps(found[f"fixed at {workers}"]), flush=True)
    report = vars(asked) | {
        "arrivals": len(day),
        "rule": asdict(Rule()),
        "found": found,
        "seconds": round(time.monotonic() - started, 1),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
