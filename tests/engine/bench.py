"""Builds and runs images for engine tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.engine import Engine
from engine.pipeline import BASE, UPSAMPLE, Pipeline
from engine.stage import Stage
from engine.steps import Finished, StepReport
from engine.trajectory import Guidance, ImageRequest, StagePlan, StagePlans
from vocabulary.sampling import Thresholding, TimeGrid

MAX_ROWS = 4


@dataclass(frozen=True)
class Bench:
    conditional: Pipeline
    unconditional: Pipeline
    stages: Mapping[str, Stage]
    _alone: dict[ImageRequest, Tensor] = field(default_factory=dict, repr=False)

    def engine(self, max_rows: int = MAX_ROWS, depth: int = 1) -> Engine:
        return Engine(self.stages, max_rows, depth)

    def image(
        self,
        job_id: str = "job",
        index: int = 0,
        *,
        steps: int = 2,
        upsample: int = 0,
        sampler: str = "ddim",
        eta: float = 0.0,
        time_grid: TimeGrid = "official",
        thresholding: Thresholding = "clip",
        label: int | None = 0,
        scale: float = 0.0,
        interval: tuple[int, int] = (0, 1000),
        seed: int = 7,
        pipeline: Pipeline | None = None,
    ) -> ImageRequest:
        """An image of so many base steps and, where upsample is not 0, so many in the upsampler."""
        base = StagePlan(BASE, sampler, steps, eta, time_grid, thresholding)
        plan = StagePlan(UPSAMPLE, sampler, upsample, eta, time_grid, thresholding) if upsample else None
        return (pipeline or self.conditional).image(
            job_id, index, seed, Guidance(label, scale, interval=interval), StagePlans(base, plan)
        )

    def alone(self, request: ImageRequest) -> Tensor:
        """The pixels of an image that has no neighbours."""
        if request not in self._alone:
            engine = self.engine()
            engine.add(request)
            (finished,) = finish(engine)
            self._alone[request] = finished.pixels
        return self._alone[request]


def reports(engine: Engine) -> list[StepReport]:
    """Step until nothing is left."""
    seen = []
    while (report := engine.step()) is not None:
        seen.append(report)
    return seen


def finish(engine: Engine) -> list[Finished]:
    return [finished for report in reports(engine) for finished in report.finished]


def limit_rows(module: nn.Module, most: Callable[[], int]) -> list[int]:
    """Let a network run out of memory above so many rows; the row counts that it computed."""
    computed: list[int] = []

    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = len(inputs[0])
        if rows > most():
            raise torch.OutOfMemoryError(f"{rows} rows")
        computed.append(rows)

    module.register_forward_pre_hook(run_out)
    return computed
