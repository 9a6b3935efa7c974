"""The pipelines that a worker has loaded, their engine and metrics, and the state that heartbeats report."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from prometheus_client import CollectorRegistry, generate_latest

from engine.audit import Audit
from engine.engine import Engine
from engine.pipeline import Pipeline
from jobs.contract.workers import WorkerInfo
from worker.auditing import Numerics
from worker.metrics import StepMetrics


@dataclass(frozen=True)
class LoadedPipelines:
    """Pipelines, engine and metrics of one worker; `info` describes the worker as it was after loading."""

    pipelines: Mapping[str, Pipeline]
    engine: Engine
    info: WorkerInfo
    metrics: StepMetrics
    registry: CollectorRegistry
    numerics: Numerics
    audit: Audit

    @property
    def device(self) -> torch.device:
        return next(iter(self.engine.stages.values())).device

    def report(self) -> tuple[WorkerInfo, str]:
        """Return the worker's present state, and its metrics in Prometheus' text format."""
        self.metrics.note_memory(self.device)
        self.metrics.in_flight.set(self.engine.rows_in_flight)
        self.metrics.max_rows.set(self.engine.max_rows)
        info = self.info.model_copy(
            update={
                "numerics": self.numerics.of_all,
                "numerics_by_pipeline": self.numerics.by_pipeline,
                "rows_in_flight": self.engine.rows_in_flight,
                "row_shapes": self.engine.row_shapes,
                "step_ms": {name: self._step_ms(pipeline) for name, pipeline in self.pipelines.items()},
            }
        )
        return info, generate_latest(self.registry).decode()

    def _step_ms(self, pipeline: Pipeline) -> dict[str, dict[int, float]]:
        return {name: self.engine.costs.measured_ms(pipeline.stage_key(name)) for name in pipeline.stage_names}
