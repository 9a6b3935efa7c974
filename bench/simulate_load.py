"""The load of the simulation: pipelines, their step costs, and jobs in calm periods and bursts."""

import json
import random
from dataclasses import dataclass, field
from statistics import mean

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import evaluations_of, work_of
from tests.jobs.samples import DEMO
from vocabulary.priorities import PRIORITIES

SHAPES = (1, 2, 4, 8, 16, 32)
MAX_ROWS = SHAPES[-1]
# Milliseconds per step: a fixed cost for launches and reading weights, and a cost per row, larger for the upsampler.
STEP_MS = {
    "base": {rows: 6.0 + 1.6 * rows for rows in SHAPES},
    "upsample": {rows: 6.0 + 3.0 * rows for rows in SHAPES},
}
STEPS, STEP_WEIGHTS = (10, 25, 50, 100, 250), (20, 50, 15, 10, 5)
IMAGES, IMAGE_WEIGHTS = (1, 2, 4, 8, 16, 64), (50, 15, 15, 10, 7, 3)
BURST, CALM = 4.0, 0.5  # factors on the mean rate of arrivals


@dataclass(eq=False)
class SimulatedJob:
    """A job, its announced ETA, and its end."""

    id: str
    arrives: float
    request: ResolvedRequest
    work: dict[str, int]
    evaluations: dict[str, int]
    estimated: float = 0.0
    eta: float = 0.0
    claimed: float = 0.0
    ends: float = 0.0
    images_left: int = 0
    caller: str = ""
    left: dict[int, int] = field(default_factory=dict)  # remaining steps of each image, while the job is queued

    def __post_init__(self) -> None:
        self.left = self.left or dict.fromkeys(range(self.request.num_rows), sum(self.evaluations.values()))

    def key_of(self, stage: str) -> str:
        """The engine's key of one of its stages."""
        return f"{self.request.model}/{stage}"

    @property
    def solo(self) -> float:
        """Seconds on an idle worker, with all its rows in every step."""
        rows = self.request.num_rows
        full, rest = divmod(rows, MAX_ROWS)
        shapes = [MAX_ROWS] * full + [next(s for s in SHAPES if s >= rest)] * (rest > 0)
        return sum(
            steps * sum(STEP_MS[stage][shape] for shape in shapes) / 1000 for stage, steps in self.evaluations.items()
        )

    @property
    def slowdown(self) -> float:
        return (self.ends - self.arrives) / self.solo


def make_pipelines(number: int) -> list[PipelineInfo]:
    """Pipelines of separate stacks, which share no network."""
    return [
        DEMO.model_copy(
            update={
                "id": f"demo-{index}",
                "stages": tuple(each.model_copy(update={"model_hash": f"{index:016x}"}) for each in DEMO.stages),
            }
        )
        for index in range(number)
    ]


def make_jobs(
    number: int, workers: int, load: float, pipelines: list[PipelineInfo], draw: random.Random
) -> list[SimulatedJob]:
    """Jobs in calm periods and bursts, at a rate that keeps the workers busy for a share `load` of the time.

    All jobs of one period are for one pipeline; each pipeline has half as many periods as the one before it.
    """
    requests = [make_request(draw, DEMO) for _ in range(number)]
    row_seconds = {stage: min(ms / rows for rows, ms in by_shape.items()) / 1000 for stage, by_shape in STEP_MS.items()}
    works = [work_of(request) for request in requests]
    mean_work = mean(sum(steps * row_seconds[stage] for stage, steps in work.items()) for work in works)
    mean_gap, now, rate, until = mean_work / workers / load, 0.0, CALM, 0.0
    jobs, stretches = [], []
    for index, (request, work) in enumerate(zip(requests, works, strict=True)):
        if now >= until:
            # bursts take a seventh of the time, so that the mean rate is 1
            rate = BURST if draw.random() < 1 / 7 else CALM
            until = now + draw.expovariate(1 / (100 * mean_gap))
        stretches.append(until)
        now += draw.expovariate(rate / mean_gap)
        jobs.append(SimulatedJob(str(index), now, request, work, evaluations_of(request)))
    halving = [0.5**index for index in range(len(pipelines))]
    asked = {until: draw.choices(pipelines, halving)[0].id for until in dict.fromkeys(stretches)}
    for job, until in zip(jobs, stretches, strict=True):
        job.request = job.request.model_copy(update={"model": asked[until]})
    return jobs


def make_request(draw: random.Random, pipeline: PipelineInfo) -> ResolvedRequest:
    priority = draw.choices(PRIORITIES, (10, 70, 20))[0]
    body = {
        "class_label": draw.randrange(len(pipeline.classes)),
        "steps": draw.choices(STEPS, STEP_WEIGHTS)[0],
        "n": draw.choices(IMAGES, IMAGE_WEIGHTS)[0],
        "upsample": draw.random() < 0.7,
        "priority": priority,
        "seed": 0,
    }
    return resolve(JobRequest.parse(json.dumps(body).encode()), pipeline, lambda: 0)
