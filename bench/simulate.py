"""Simulates a fleet of workers under realistic load, with the real scheduler, claiming rule and estimator.

    python -m bench.simulate [--workers 10] [--jobs 10000] [--load 0.85] [--pipelines 1] [--seed 1]

Jobs come in bursts, of all sizes, step counts and priorities; step costs are those of a GPU worker whose larger batches
cost less per row. Reports occupancy, fairness (Jain's index over jobs' speeds relative to running alone), the slowdown
against running alone, and the errors of the ETAs at submission. Writes bench/results/simulate.json.
"""

import argparse
import heapq
import json
import math
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from bench.simulate_load import MAX_ROWS, STEP_MS, STEPS, SimulatedJob, make_jobs, make_pipelines
from bench.turns import Line
from engine.costs import StepCosts
from engine.scheduler import Scheduler
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.work import RUNNING, rank_of
from jobs.queue.transitions import RATIOS_KEPT
from jobs.views.estimate import Backlog, Estimator
from jobs.views.fleet import Fleet, StepMs
from tests.jobs.samples import worker_info
from vocabulary.priorities import PRIORITIES, Priority
from worker.claiming import LOOK_AHEAD, priority_of_next
from worker.loop import QUEUE_DEPTH, QUEUE_DEPTH_AT_MOST

ROOT = Path(__file__).parent


@dataclass
class SimulatedWorker:
    """A worker without networks: its scheduler chooses steps, which take simulated time."""

    scheduler: Scheduler[tuple[str, int]]
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)
    left: dict[tuple[str, int], int] = field(default_factory=dict)  # remaining steps of each image in flight
    busy: bool = False
    claimed: Counter[Priority] = field(default_factory=Counter)  # from the heads of the queues
    steps: int = 0
    rows: int = 0
    padded: int = 0
    seconds: float = 0.0


class Simulation:
    """Processes events in order of time: arrivals of jobs and ends of steps."""

    def __init__(
        self, workers: int, pipelines: list[PipelineInfo], jobs: list[SimulatedJob], step_ms: StepMs = STEP_MS
    ) -> None:
        names = tuple(each.id for each in pipelines)
        self.step_ms, self.names = step_ms, names
        self.workers = [self._worker() for _ in range(workers)]
        self.queues: dict[Priority, dict[str, Line[SimulatedJob]]] = {
            priority: {name: Line() for name in names} for priority in PRIORITIES
        }
        self.owner_of: Callable[[str], str] = lambda job_id: ""
        # device seconds spent on each owner's images, by second of simulated time
        self.served: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.work: dict[str, dict[str, int]] = {name: {} for name in names}
        self.ratios: dict[str, deque[float]] = {name: deque(maxlen=RATIOS_KEPT) for name in names}
        infos = [worker_info(str(index), pipelines=names) for index in range(workers)]
        self.estimator = Estimator(
            Fleet({each.id: each for each in pipelines}, tuple(infos), dict.fromkeys(names, step_ms))
        )
        self.events: list[tuple[float, int, object]] = []
        self.order = count()  # orders events at the same time
        for job in jobs:
            self._at(job.arrives, job)

    def _worker(self) -> SimulatedWorker:
        step_ms = {f"{name}/{stage}": by_shape for name in self.names for stage, by_shape in self.step_ms.items()}
        costs = StepCosts({stage: tuple(by_shape) for stage, by_shape in step_ms.items()})
        for stage, by_shape in step_ms.items():
            for shape, ms in by_shape.items():
                costs.note(stage, shape, ms / 1000)
        return SimulatedWorker(Scheduler(costs, MAX_ROWS))

    def _at(self, when: float, what: object) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def run(self) -> None:
        while self.events:
            now, _, what = heapq.heappop(self.events)
            self._happen(now, what)

    def _happen(self, now: float, what: object) -> None:
        ready = self.workers
        if isinstance(what, SimulatedJob):
            self._arrive(what)
        elif isinstance(what, SimulatedWorker):
            what.busy, ready = False, [what]
        # an idle worker claims at once, a busy one between two steps
        for worker in ready:
            if not worker.busy:
                self._next_step(worker, now)

    def _arrive(self, job: SimulatedJob) -> None:
        priority, pipeline = job.request.priority, job.request.model
        backlog = self._backlog(pipeline, tuple(self._backlog(name) for name in self.work if name != pipeline))
        length, share = backlog.lengths[priority], self.estimator.cost_ms(pipeline, job.work) / 1000
        place = self.queues[priority][pipeline].enter(job, job.caller, share)
        ahead = place / length if length else 1.0
        job.estimated = self.estimator.eta_seconds(backlog, job.request, ahead=ahead) or math.nan
        job.eta = job.estimated * backlog.bias
        self._count(job, priority, 1)

    def _backlog(self, pipeline: str, beside: tuple[Backlog, ...] = ()) -> Backlog:
        lengths: dict[str, int] = {priority: len(queues[pipeline]) for priority, queues in self.queues.items()}
        return Backlog(pipeline, lengths, self.work[pipeline], tuple(self.ratios[pipeline]), beside)

    def _count(self, job: SimulatedJob, where: str, sign: int) -> None:
        work = self.work[job.request.model]
        for stage, row_steps in job.work.items():
            name = f"{where}:{rank_of(job.request.priority, job.work)}:{stage}"
            work[name] = work.get(name, 0) + sign * row_steps

    def _next_step(self, worker: SimulatedWorker, now: float) -> None:
        self._take(worker, now)
        choice = worker.scheduler.choose()
        if choice is None:
            return
        worker.busy = True
        seconds = self.step_ms[choice.stage.rpartition("/")[2]][choice.row_shape] / 1000
        worker.scheduler.moved(choice.keys)
        worker.steps += 1
        worker.rows += len(choice.keys)
        worker.padded += choice.row_shape
        worker.seconds += seconds
        for key in choice.keys:
            self.served[self.owner_of(key[0])][int(now)] += seconds / len(choice.keys)
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
            self.ratios[job.request.model].append((now - job.arrives) / job.estimated)

    def _take(self, worker: SimulatedWorker, now: float) -> None:
        while priorities := [priority for priority, queues in self.queues.items() if any(queues.values())]:
            priority = priorities[priority_of_next(worker.claimed.total(), len(priorities))]
            waiting = [queue for queue in self.queues[priority].values() if queue]
            queue = waiting[worker.claimed[priority] % len(waiting)]
            if queue[0].request.num_rows > QUEUE_DEPTH * MAX_ROWS - len(worker.left):
                self._take_beside(worker, now)
                return
            worker.claimed[priority] += 1
            self._claim(worker, queue, queue[0], now)

    def _take_beside(self, worker: SimulatedWorker, now: float) -> None:
        slack = worker.scheduler.slack_of_newcomers()
        lines = [(priority, queue) for priority, queues in self.queues.items() for queue in queues.values()]
        for priority, queue in lines:
            ends = [
                *islice(queue, LOOK_AHEAD),
                *islice(reversed(queue), max(0, min(LOOK_AHEAD, len(queue) - LOOK_AHEAD))),
            ]
            for job in ends:
                if len(worker.left) + job.request.num_rows > QUEUE_DEPTH_AT_MOST * MAX_ROWS:
                    continue
                work = [(job.key_of(stage), row_steps) for stage, row_steps in job.work.items()]
                if worker.scheduler.slack(work, priority) < slack:
                    self._claim(worker, queue, job, now)

    def _claim(self, worker: SimulatedWorker, queue: Line[SimulatedJob], job: SimulatedJob, now: float) -> None:
        job.claimed = job.claimed or now
        queue.leave(job, served=True)
        self._enter(worker, job)

    def _enter(self, worker: SimulatedWorker, job: SimulatedJob) -> None:
        priority = job.request.priority
        self._count(job, priority, -1)
        self._count(job, RUNNING, 1)
        worker.jobs[job.id], job.images_left = job, len(job.left)
        steps = [(job.key_of(stage), evaluations) for stage, evaluations in job.evaluations.items()]
        for index, left in job.left.items():
            worker.scheduler.enter((job.id, index), job.id, priority, last(steps, left))
            worker.left[job.id, index] = left


def last(steps: list[tuple[str, int]], left: int) -> list[tuple[str, int]]:
    """The last `left` steps of an image, by stage."""
    found: list[tuple[str, int]] = []
    for stage, number in reversed(steps):
        if taken := min(number, left):
            found.insert(0, (stage, taken))
            left -= taken
    return found


def summary(jobs: list[SimulatedJob], simulation: Simulation) -> dict[str, Any]:
    span = max(job.ends for job in jobs) - min(job.arrives for job in jobs)
    speeds = [1 / job.slowdown for job in jobs]
    ratios = [(job.ends - job.arrives) / job.eta for job in jobs]  # ratios of actual to estimated time
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
            for name, priority in [("all", None), *((each, each) for each in PRIORITIES)]
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
    parser.add_argument("--pipelines", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    pipelines = make_pipelines(asked.pipelines)
    jobs = make_jobs(asked.jobs, asked.workers, asked.load, pipelines, random.Random(asked.seed))
    simulation, started = Simulation(asked.workers, pipelines, jobs), time.monotonic()
    simulation.run()
    report = vars(asked) | {"found": summary(jobs, simulation), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(report, indent=1))
    (ROOT / "results" / "simulate.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
