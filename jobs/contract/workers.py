"""The state that a worker announces with every heartbeat."""

from pydantic import Field

from jobs.contract.announced import Announced


class WorkerInfo(Announced):
    """One live worker; the record in Redis expires when heartbeats stop."""

    name: str
    device: str
    pipelines: tuple[str, ...]
    row_shapes: tuple[int, ...]  # row counts that a step is padded to
    rows_in_flight: int = 0
    step_ms: dict[str, dict[str, dict[int, float]]] = Field(
        default_factory=dict, description="measured milliseconds of a step: by pipeline, stage and row shape"
    )
    numerics: str = Field(description="fingerprint of all its pipelines' numerics")
    numerics_by_pipeline: dict[str, str] = Field(
        default_factory=dict, description="the numerics that a pipeline's jobs have from this worker"
    )
    started_at: float  # Unix seconds, as all times here
    last_heartbeat: float
    version: str
