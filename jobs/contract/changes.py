"""Changes of pipelines: an operator requests that workers load or unload a pipeline, and each worker reports back."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.contract.json_bodies import JsonBody

PipelineName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
WorkerName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Action = Literal["load", "unload"]


class ChangeRequest(JsonBody):
    """A request that workers load or unload a pipeline."""

    action: Action
    model: PipelineName = Field(description="pipeline, by the name that its stack gives it")
    worker: WorkerName | None = Field(
        default=None,
        description="null: every live worker for a load; every worker that serves the pipeline for an unload",
    )


class ChangeStatus(StrEnum):
    """How far a worker is with a change."""

    WAITING = "waiting"  # the worker has not read the change; it looks for changes at each heartbeat
    DRAINING = "draining"  # the worker claims no jobs, and finishes those in flight
    CHANGING = "changing"  # the worker loads or unloads the pipeline
    DONE = "done"
    REFUSED = "refused"
    LOST = "lost"  # the worker ended before the change was done

    @property
    def is_final(self) -> bool:
        return self in (ChangeStatus.DONE, ChangeStatus.REFUSED, ChangeStatus.LOST)


class WorkerChange(BaseModel):
    """How far one worker is with a change, and why."""

    model_config = ConfigDict(frozen=True)

    worker: str
    status: ChangeStatus = ChangeStatus.WAITING
    detail: str = Field(default="", description="why it was refused, or what was done")


class AskedChange(BaseModel):
    """A requested change."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["pipeline_change"] = "pipeline_change"
    created_at: float
    action: Action
    model: str


class PipelineChange(AskedChange):
    """A change of the pipelines of workers, with its progress."""

    workers: tuple[WorkerChange, ...] = Field(description="each worker that the change was sent to")
    is_final: bool = Field(default=False, description="whether the part of every worker is done, refused or lost")
