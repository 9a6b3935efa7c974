"""The service's answers. Unknown fields of a newer service are ignored."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Status(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Return whether the job has ended and will not change any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Upsample(View):
    """The sampling of the upsampler."""

    steps: int
    sampler: str
    eta: float
    strength: float
    time_grid: str
    thresholding: str


class Request(View):
    """The request of a job, with all defaults filled in."""

    kind: str
    model: str
    images: list[str]
    seeds: list[int] | None
    strength: float | None
    class_label: int | None
    class_weights: dict[str, float] | None
    guidance_scale: float
    guidance_interval: list[int]
    guidance_schedule: str
    steps: int
    sampler: str
    eta: float
    time_grid: str
    thresholding: str
    eps_scale: float
    n: int
    first_index: int
    seed: int
    upsample: Upsample | Literal[False]
    previews: bool
    priority: Literal["low", "normal", "high"]
    expires_in: int
    user: str | None
    metadata: dict[str, str] | None
    webhook_url: str | None


class Progress(View):
    """The progress of a job: `step` of its stage, `fraction` of all steps, and seconds until its end, if known."""

    stage: str
    step: int
    steps: int
    fraction: float
    eta_seconds: float | None = None
    eta_error_seconds: float | None = None


class Queue(View):
    """The place of a queued job: the number of jobs before it, and how many of them are the caller's own."""

    position: int
    yours: int = 0
    eta_seconds: float | None
    eta_error_seconds: float | None
    workers: int


class ImageInfo(View):
    """One image of a job."""

    index: int
    url: str
    sha256: str
    width: int
    height: int
    class_label: int | None
    class_name: str | None
    seed: int
    source: str | None


class Failure(View):
    kind: str
    detail: str


class Usage(View):
    steps: int
    device_seconds: float


class JobState(View):
    """The state of a job at the time of the call; times are Unix seconds."""

    id: str
    object: Literal["job"]
    status: Status
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None  # null: never, such as for `adm generate --local`
    request: Request | None
    progress: Progress
    queue: Queue | None
    images: list[ImageInfo]
    error: Failure | None
    usage: Usage
    results: dict[str, Any] | None
    attempt: int
    numerics: str | None


class JobList(View):
    """The jobs of one call, in the order of its items."""

    object: Literal["list"]
    data: list[JobState]


class JobPage(View):
    """Jobs, newest first; `next` is the cursor of the next page."""

    object: Literal["list"]
    data: list[JobState]
    has_more: bool
    next: str | None


class GridAxis(View):
    """The values of a field along one side of a grid."""

    field: str
    values: list[int | float | str | None]


class GridCell(View):
    """One cell of a grid; its job is null if it was removed."""

    x: int | float | str | None
    y: int | float | str | None
    job: JobState | None


class GridState(View):
    """The state of a grid at the time of the call; its cells are row by row."""

    id: str
    object: Literal["grid"]
    created_at: float
    expires_at: float
    x: GridAxis
    y: GridAxis | None
    cells: list[GridCell]
    completed: int
    ended: int
    sheet_url: str | None

    @property
    def is_final(self) -> bool:
        """Return whether every cell has ended, so that there is a sheet."""
        return self.sheet_url is not None


class File(View):
    """An uploaded picture."""

    id: str
    object: Literal["file"]
    sha256: str
    width: int
    height: int
    bytes: int
    expires_at: float


class ClassInfo(View):
    index: int
    name: str


class Model(View):
    """A pipeline of the service; other fields are in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    object: Literal["model"]
    classes: list[ClassInfo]
    image_size: int
    samplers: list[str]
    kinds: list[str]
    defaults: Mapping[str, Any]
    limits: Mapping[str, Any]
    workers: list[str]


class ModelList(View):
    object: Literal["list"]
    data: list[Model]


class WorkerChange(View):
    """One worker's part of a change; `detail`: the reason of a refusal, or what was done."""

    worker: str
    status: str
    detail: str


class PipelineChange(View):
    """The progress of workers that load or unload a pipeline."""

    id: str
    object: Literal["pipeline_change"]
    created_at: float
    action: Literal["load", "unload"]
    model: str
    workers: list[WorkerChange]
    is_final: bool
