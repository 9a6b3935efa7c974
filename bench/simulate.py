"""A fleet of workers under realistic load, as discrete events: the same scheduler, admission rule and estimator.

    python -m bench.simulate [--workers 10] [--jobs 10000] [--load 0.85] [--seed 1]

Jobs come in bursts, of all sizes, step counts and priorities; step costs are those of a GPU worker whose larger batches
cost less a row. Reports occupancy, fairness (Jain's index over how fast jobs went, of what they would have alone), the
slowdown against that ideal, and how far the ETAs told at submission were off. Writes bench/results/simulate.json.
"""

import argparse
import heapq
import json
import math
import random
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from engine.costs import StepCosts
from engine.scheduler import Priority, Scheduler
from jobs import keys
from jobs.estimate import Backlog, Estimator
from jobs.fleet import Fleet
from jobs.pipelines import PipelineInfo
from jobs.request import JobRequest, ResolvedRequest
from jobs.resolution import resolve
from jobs.transitions import RATIOS_KEPT
from jobs.work import RUNNING, evaluations_of, rank_of, work_of
from tests.jobs.samples import DEMO, worker_info
from worker.loop import QUEUE_DEPTH, QUEUE_DEPTH_AT_MOST
from worker.taking import LOOK_AHEAD, line_of_next

SHAPES = (1, 2, 4, 8, 16, 32)
MAX_ROWS = SHAPES[-1]
# Milliseconds a step: a floor for launches and reading the weights, and a price a row; the upsampler's rows cost more.
STEP_MS = {
    "base": {rows: 6.0 + 1.6 * rows for rows in SHAPES},
    "upsample": {rows: 6.0 + 3.0 * rows for rows in SHAPES},
}
STEPS, STEP_WEIGHTS = (10, 25, 50, 100, 250), (20, 50, 15, 10, 5)
IMAGES, IMAGE_WEIGHTS = (1, 2, 4, 8, 16, 64), (50, 15, 15, 10, 7, 3)
BURST, CALM = 4.0, 0.5  # times the mean rate of arrivals
ROOT = Path(__file__).parent


@dataclass
class SimulatedJob:
    """A job, what it told its client, and when it ended."""

    id: str
    arrives: float
    request: ResolvedRequest
    work: dict[str, int]
    evaluations: dict[str, int]
    reckoned: float = 0.0
    eta: float = 0.0
    ends: float = 0.0
    images_left: int = 0

    @property
    def solo(self) -> float:
        """Seconds on an idle worker, all its rows in every step."""
        rows = self.request.num_rows
        full, rest = divmod(rows, MAX_ROWS)
        shapes = [MAX_ROWS] * full + [next(s for s in SHAPES if s >= rest)] * (rest > 0)
        return sum(
            steps * sum(STEP_MS[stage][shape] for shape in shapes) / 1000 for stage, steps in self.evaluations.items()
        )

    @property
    def slowdown(self) -> float:
        return (self.ends - self.arrives) / self.solo


@dataclass
class SimulatedWorker:
    """A worker without networks: its scheduler decides, time passes, images end."""

    scheduler: Scheduler[tuple[str, int]]
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)
    left: dict[tuple[str, int], int] = field(default_factory=dict)  # steps of each image in flight
    busy: bool = False
    claimed: int = 0  # from the heads of the queues
    steps: int = 0
    rows: int = 0
    padded: int = 0
    seconds: float = 0.0


class Simulation:
    """Events in order of time: a job arrives, a worker's step ends."""

    def __init__(self, workers: int, jobs: list[SimulatedJob]) -> None:
        self.workers = [SimulatedWorker(Scheduler(self._costs(), MAX_ROWS)) for _ in range(workers)]
        self.queues: dict[Priority, deque[SimulatedJob]] = {priority: deque() for priority in keys.PRIORITIES}
        self.work: dict[str, int] = {}
        self.ratios: deque[float] = deque(maxlen=RATIOS_KEPT)
        info = worker_info().model_copy(update={"pipelines": (DEMO.id,)})
        names = [info.model_copy(update={"name": str(i)}) for i in range(workers)]
        self.estimator = Estimator(Fleet({DEMO.id: DEMO}, tuple(names), {DEMO.id: STEP_MS}))
        self.events: list[tuple[float, int, SimulatedJob | SimulatedWorker]] = []
        self.order = count()  # of events at one time
        for job in jobs:
            self._at(job.arrives, job)

    @staticmethod
    def _costs() -> StepCosts:
        costs = StepCosts(dict.fromkeys(STEP_MS, SHAPES))
        for stage, by_shape in STEP_MS.items():
            for shape, ms in by_shape.items():
                costs.note(stage, shape, ms / 1000)
        return costs

    def _at(self, when: float, what: SimulatedJob | SimulatedWorker) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self) -> None:
        while self.events:
            now, _, what = heapq.heappop(self.events)
            if isinstance(what, SimulatedJob):
                self._arrive(what)
            else:
                what.busy = False
            # an idle worker takes at once; a busy one between two steps
            for worker in self.workers if isinstance(what, SimulatedJob) else [what]:
                if not worker.busy:
                    self._go_on(worker, now)

    def _arrive(self, job: SimulatedJob) -> None:
        priority = job.request.priority
        lengths: dict[str, int] = {each: len(queue) for each, queue in self.queues.items()}
        backlog = Backlog(DEMO.id, lengths, self.work, tuple(self.ratios))
        job.reckoned = self.estimator.eta_seconds(backlog, job.request) or math.nan
        job.eta = job.reckoned * backlog.bias
        self.queues[priority].append(job)
        self._count(job, priority, 1)

    def _count(self, job: SimulatedJob, where: str, sign: int) -> None:
        for stage, row_steps in job.work.items():
            name = f"{where}:{rank_of(job.request.priority, job.work)}:{stage}"
            self.work[name] = self.work.get(name, 0) + sign * row_steps

    def _go_on(self, worker: SimulatedWorker, now: float) -> None:
        self._take(worker)
        choice = worker.scheduler.choose()
        if choice is None:
            return
        worker.busy = True
        seconds = STEP_MS[choice.stage][choice.row_shape] / 1000
        worker.scheduler.moved(choice.keys)
        worker.steps += 1
        worker.rows += len(choice.keys)
        worker.padded += choice.row_shape
        worker.seconds += seconds
        for key in choice.keys:
            worker.left[key] -= 1
            if worker.left[key] == 0:
                self._end_image(worker, key, now + seconds)
        self._at(now + seconds, worker)

    def _end_image(self, worker: SimulatedWorker, key: tuple[str, int], now: float) -> None:
        worker.scheduler.leave(key)
        del worker.left[key]
        job = worker.jobs[key[0]]
        job.images_left -= 1
        if job.images_left == 0:
            job.ends = now
            del worker.jobs[job.id]
            self._count(job, RUNNING, -1)
            self.ratios.append((now - job.arrives) / job.reckoned)

    def _take(self, worker: SimulatedWorker) -> None:
        while lines := [queue for queue in self.queues.values() if queue]:
            queue = lines[line_of_next(worker.claimed, len(lines))]
            if queue[0].request.num_rows > QUEUE_DEPTH * MAX_ROWS - len(worker.left):
                self._take_beside(worker)
                return
            worker.claimed += 1
            self._enter(worker, queue.popleft())

    def _take_beside(self, worker: SimulatedWorker) -> None:
        slack = worker.scheduler.slack_of_newcomers()
        for priority, queue in self.queues.items():
            ends = [
                *islice(queue, LOOK_AHEAD),
                *islice(reversed(queue), max(0, min(LOOK_AHEAD, len(queue) - LOOK_AHEAD))),
            ]
            for job in ends:
                if len(worker.left) + job.request.num_rows > QUEUE_DEPTH_AT_MOST * MAX_ROWS:
                    continue
                if worker.scheduler.slack(list(job.work.items()), priority) < slack:
                    queue.remove(job)
                    self._enter(worker, job)

    def _enter(self, worker: SimulatedWorker, job: SimulatedJob) -> None:
        priority = job.request.priority
        self._count(job, priority, -1)
        self._count(job, RUNNING, 1)
        worker.jobs[job.id], job.images_left = job, job.request.num_rows
        for index in range(job.request.num_rows):
            worker.scheduler.enter((job.id, index), job.id, priority, list(job.evaluations.items()))
            worker.left[job.id, index] = sum(job.evaluations.values())


def make_jobs(number: int, workers: int, load: float, draw: random.Random) -> list[SimulatedJob]:
    """Jobs that come in calm and in bursts, at a rate that keeps the workers busy for a share `load` of the time."""
    requests = [make_request(draw, DEMO) for _ in range(number)]
    row_seconds = {stage: min(ms / rows for rows, ms in by_shape.items()) / 1000 for stage, by_shape in STEP_MS.items()}
    works = [work_of(request) for request in requests]
    mean_work = mean(sum(steps * row_seconds[stage] for stage, steps in work.items()) for work in works)
    mean_gap, now, rate, until = mean_work / workers / load, 0.0, CALM, 0.0
    jobs = []
    for index, (request, work) in enumerate(zip(requests, works, strict=True)):
        if now >= until:
            # a seventh of the time in bursts, so that the mean rate is 1
            rate = BURST if draw.random() < 1 / 7 else CALM
            until = now + draw.expovariate(1 / (100 * mean_gap))
        now += draw.expovariate(rate / mean_gap)
        jobs.append(SimulatedJob(str(index), now, request, work, evaluations_of(request)))
    return jobs


def make_request(draw: random.Random, pipeline: PipelineInfo) -> ResolvedRequest:
    priority = draw.choices(keys.PRIORITIES, (10, 70, 20))[0]
    body = {
        "class_label": draw.randrange(len(pipeline.classes)),
        "steps": draw.choices(STEPS, STEP_WEIGHTS)[0],
        "n": draw.choices(IMAGES, IMAGE_WEIGHTS)[0],
        "upsample": draw.random() < 0.7,
        "priority": priority,
        "seed": 0,
    }
    return resolve(JobRequest.parse(json.dumps(body).encode()), pipeline, lambda: 0)


def summary(jobs: list[SimulatedJob], simulation: Simulation) -> dict[str, Any]:
    span = max(job.ends for job in jobs) - min(job.arrives for job in jobs)
    speeds = [1 / job.slowdown for job in jobs]
    ratios = [(job.ends - job.arrives) / job.eta for job in jobs]  # of what they took to what they were told
    return {
        "busy": round(sum(each.seconds for each in simulation.workers) / span / len(simulation.workers), 3),
        "occupancy": round(
            sum(each.rows for each in simulation.workers) / sum(each.padded for each in simulation.workers), 3
        ),
        "mean_rows": round(
            sum(each.rows for each in simulation.workers) / sum(each.steps for each in simulation.workers), 2
        ),
        "jain_index": round(sum(speeds) ** 2 / len(speeds) / sum(speed**2 for speed in speeds), 3),
        "slowdown": {
            name: slowdowns([job for job in jobs if priority in (None, job.request.priority)])
            for name, priority in [("all", None), *((each, each) for each in keys.PRIORITIES)]
        },
        "slowdown_by_steps": {
            str(steps): slowdowns([job for job in jobs if job.request.steps == steps]) for steps in STEPS
        },
        "eta": {
            "median_ratio": round(median(ratios), 3),
            "median_error": round(median(abs(ratio - 1) for ratio in ratios), 3),
            "within_a_factor_of_2": round(mean(0.5 <= ratio <= 2 for ratio in ratios), 3),
        },
    }


def slowdowns(jobs: list[SimulatedJob]) -> dict[str, float]:
    cuts = quantiles((job.slowdown for job in jobs), n=100)
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(job.slowdown for job in jobs), 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    jobs = make_jobs(asked.jobs, asked.workers, asked.load, random.Random(asked.seed))
    simulation, started = Simulation(asked.workers, jobs), time.monotonic()
    simulation.run()
    report = vars(asked) | {"found": summary(jobs, simulation), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(report, indent=1))
    (ROOT / "results" / "simulate.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
