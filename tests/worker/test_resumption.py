"""A job that is killed after every step ends as one that never was: its images, its results and its count of steps."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.engine import Engine
from engine.pipeline import Pipeline, build_stages
from engine.stage import Stage
from engine.steps import StepReport
from jobs.contract.job import ImageRecord
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from models.stack import load_stack
from tests.models.samples import write_stack
from vocabulary.sampling import Direction
from worker.attempts import Attempt
from worker.checkpoints import Checkpoints
from worker.claim import Claim
from worker.job_inputs import JobInputs
from worker.job_plans import plan_job
from worker.job_state import JobState, from_bytes, to_bytes
from worker.offers import offer, select

ROWS = 4
ENLARGED: dict[str, Any] = {"steps": 2, "sampler": "ddpm"}
GUIDED: dict[str, Any] = {"class_label": "green", "guidance_scale": 3, "steps": 4}
BODIES: Mapping[str, dict[str, Any]] = {
    "generate": GUIDED | {"sampler": "ddim", "eta": 1, "n": 2, "first_index": 5, "upsample": ENLARGED},
    "generate by heun": GUIDED
    | {"sampler": "heun", "thresholding": "dynamic", "upsample": ENLARGED | {"strength": 0.5}},
    "generate by dpmpp_2m": GUIDED
    | {"sampler": "dpmpp_2m", "guidance_schedule": "entropy", "upsample": {"steps": 3, "sampler": "heun"}},
    "upsample": {"kind": "upsample", "images": ["a", "b"], "upsample": ENLARGED},
    "variation": GUIDED | {"kind": "variation", "images": ["a"], "n": 2, "strength": 0.6, "sampler": "ddpm"},
    "reconstruct": {"kind": "reconstruct", "images": ["a", "b"], "steps": 3},
    "interpolate": {"kind": "interpolate", "images": ["a", "b"], "n": 3, "steps": 3, "upsample": ENLARGED},
    "interpolate by seeds": GUIDED
    | {"kind": "interpolate", "seeds": [5, 6], "n": 3, "sampler": "ddpm", "upsample": ENLARGED},
}


@dataclass(frozen=True)
class Bench:
    pipelines: Mapping[str, Pipeline]
    stages: Mapping[str, Stage]
    pictures: Mapping[str, Tensor]

    def request(self, body: Mapping[str, Any]) -> ResolvedRequest:
        asked = JobRequest.parse(json.dumps({"model": "tiny", **body}).encode())
        return resolve(asked, offer(self.pipelines["tiny"]), lambda: 1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    stack = load_stack(write_stack(tmp_path_factory.mktemp("weights") / "tiny"))
    drawn = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stages = build_stages([stack], ROWS, threads=1)
    return Bench(select(["tiny"], [stack]), stages, dict(zip("ab", drawn, strict=True)))


class Job:
    """One attempt at a job, alone on an engine; it stores images as a worker's loop does."""

    def __init__(self, bench: Bench, request: ResolvedRequest, rows: int, state: JobState | None = None) -> None:
        self.request, self.engine = request, Engine(bench.stages, rows)
        self.plan = plan_job("job", request, bench.pipelines, bench.pictures)
        claim = Claim("job", "token", request, 1, False, None, 0.0)
        checkpoints = Checkpoints(self.engine, None, None, None, None, None, 0)  # type: ignore[arg-type]  # `enter` uses none
        self.attempt = Attempt(claim, self.plan, checkpoints.enter(claim, self.plan, JobInputs(bench.pictures, state)))
        self.pixels: dict[int, bytes] = {}

    def step(self) -> bool:
        """Take a step; return whether it was the last."""
        report = self.engine.step()
        assert isinstance(report, StepReport)
        assert not report.failed
        for moved in report.moved:
            self.attempt.moved(moved, "stage", 0.1)
        for finished in report.finished:
            index = finished.request.index
            if finished.request.plans[-1].direction is Direction.ENCODE:
                for frame in self.attempt.encoded(finished):
                    self.engine.add(frame)
                continue
            self.attempt.left(finished)
            self.pixels[index] = finished.pixels.numpy().tobytes()
            self.attempt.stored(ImageRecord(index=index, sha256="0" * 64, width=8, height=8, bytes=9, execution_id=""))
        return self.attempt.is_computed

    def state(self) -> JobState:
        """What the next attempt reads from the store."""
        state = self.attempt.state(self.engine.states("job")).copied()
        return from_bytes(to_bytes(state, self.request, "numerics"), self.request, "numerics")


@pytest.mark.parametrize("name", BODIES)
def test_job_killed_after_every_step_ends_as_one_that_never_was(bench: Bench, name: str) -> None:
    request, rows = bench.request(BODIES[name]), itertools.cycle((1, 1, ROWS))  # its images are at different steps
    undisturbed = Job(bench, request, ROWS)
    while not undisturbed.step():
        pass
    job, pixels = Job(bench, request, next(rows)), dict[int, bytes]()
    while not job.step():
        pixels |= job.pixels
        job = Job(bench, request, next(rows), job.state())
        assert job.attempt.steps, "it resumed, and did not start over"
    assert pixels | job.pixels == undisturbed.pixels
    assert (job.attempt.results, job.attempt.steps) == (undisturbed.attempt.results, undisturbed.attempt.steps)
    assert [each.index for each in sorted(job.attempt.images, key=lambda i: i.index)] == sorted(undisturbed.pixels)
