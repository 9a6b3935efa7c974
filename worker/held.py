"""What a worker holds for all its life, and what it tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest

from engine.audit import Audit
from engine.engine import Engine
from engine.pipeline import BASE, UPSAMPLE, Pipeline
from jobs.contract.workers import WorkerInfo
from worker.auditing import Numerics
from worker.metrics import StepMetrics


@dataclass(frozen=True)
class Held:
    """Networks, engine and meters; info is as it was when they had been loaded."""

    pipelines: Mapping[str, Pipeline]
    engine: Engine
    info: WorkerInfo
    metrics: StepMetrics
    registry: CollectorRegistry
    numerics: Numerics
    audit: Audit

    def tell(self) -> tuple[WorkerInfo, str]:
        """How things stand now, and the metrics of it as Prometheus reads them."""
        self.metrics.note_memory(next(iter(self.engine.stages.values())).device)
        self.metrics.in_flight.set(self.engine.rows_in_flight)
        self.metrics.max_rows.set(self.engine.max_rows)
        info = self.info.model_copy(
            update={
                "numerics": self.numerics.now,
                "rows_in_flight": self.engine.rows_in_flight,
                "row_shapes": self.engine.row_shapes,
                "step_ms": {name: self._step_ms(pipeline) for name, pipeline in self.pipelines.items()},
            }
        )
        return info, generate_latest(self.registry).decode()

    def _step_ms(self, pipeline: Pipeline) -> dict[str, dict[int, float]]:
        stages = [BASE] if pipeline.spec.upsampling is None else [BASE, UPSAMPLE]
        return {stage: self.engine.costs.measured_ms(pipeline.stage_key(stage)) for stage in stages}
