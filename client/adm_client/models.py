"""What the service answers. Fields that a newer service adds are left out."""

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
        """Nothing about the job will change any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Upsample(View):
    """How the upsampler samples."""

    steps: int
    sampler: str
    eta: float
    strength: float
    time_grid: str
    thresholding: str


class Request(View):
    """What a job does, with every default filled in."""

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
    """How far a job is: `step` of its stage, `fraction` of all; seconds until it is done, where they are known."""

    stage: str
    step: int
    steps: int
    fraction: float
    eta_seconds: float | None = None
    eta_error_seconds: float | None = None


class Queue(View):
    """Where a queued job stands: so many jobs go before it, and so many of them are the caller's own."""

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
    """A job as it was when the service was asked; times are Unix seconds."""

    id: str
    object: Literal["job"]
    status: Status
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float
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
    """Jobs, newest first; `next` is the cursor of the page behind."""

    object: Literal["list"]
    data: list[JobState]
    has_more: bool
    next: str | None


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
    """A pipeline of the service; fields that are not named here are in `model_extra`."""

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
