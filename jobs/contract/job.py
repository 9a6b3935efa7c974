"""The view of a job for clients, and the reports of workers about it."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.contract.errors import FailureKind
from jobs.contract.request import ResolvedRequest


class JobStatus(StrEnum):
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
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED})


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(View):
    """The progress of a job; `step` counts within the stage, `fraction` over all of the job."""

    stage: str
    step: int
    steps: int
    fraction: float = Field(ge=0, le=1)


class JobProgress(Progress):
    """The progress of a job, with estimates; they are null unless the job runs and the cost of its steps is known."""

    eta_seconds: float | None = Field(default=None, description="seconds until its images are stored")
    eta_error_seconds: float | None = None


class QueueInfo(View):
    """The place of a queued job; estimates are null while no live worker has announced the costs of its pipeline."""

    position: int = Field(description="number of jobs before it, in all pipelines of its workers; 0: it is next")
    yours: int = Field(description="how many of those jobs have the same caller, pipeline and priority")
    eta_seconds: float | None = Field(description="seconds until its images are stored")
    eta_error_seconds: float | None
    workers: int = Field(description="live workers that serve the job's pipeline; 0: it waits for one, or expires")


class ImageRecord(View):
    """A stored image, as the worker that stored it reports it."""

    index: int
    sha256: str
    width: int
    height: int
    bytes: int
    execution_id: str = Field(description="part of the image's key in the store")


class CheckpointRecord(View):
    """A stored state of a job in progress, and the numerics under which a worker may resume from it."""

    execution_id: str = Field(description="part of the file's key in the store")
    sha256: str = Field(description="of the file, and the other part of its key")
    numerics: str


class ImageView(View):
    index: int
    url: str
    sha256: str
    width: int
    height: int
    class_label: int | None
    class_name: str | None
    seed: int
    source: str | None = Field(default=None, description="the file it was made from; null if none, or more than one")


class JobError(View):
    kind: FailureKind
    detail: str


class Usage(View):
    steps: int = Field(description="denoising steps taken, summed over images and stages")
    device_seconds: float


class Job(View):
    """One job."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    created_at: float = Field(description="Unix seconds, as are all times")
    started_at: float | None = Field(description="begin of its latest attempt; null until a worker takes it")
    ended_at: float | None
    expires_at: float = Field(
        description="queued: when it expires; in progress: the earliest time of its removal; "
        "ended: when it and its images are removed"
    )
    request: ResolvedRequest | None = Field(
        description="null only if it cannot be read; such a job fails, or waits for a newer worker"
    )
    progress: JobProgress
    queue: QueueInfo | None = Field(description="null once started")
    images: list[ImageView]
    error: JobError | None
    usage: Usage
    results: dict[str, Any] | None = Field(
        default=None,
        description="results that are not images. Kind score: `scores`, for each image its likeliest classes, at most "
        "10, each with `class_label`, `class_name` and `probability`. Kind reconstruct: `errors`, for each image "
        "`mean_absolute` in 255ths and `psnr` in dB",
    )
    attempt: int = Field(description="1 at first; each further start adds one")
    numerics: str | None = Field(description="fingerprint under which the bytes repeat; null until completed")


class JobList(View):
    """The jobs of a call with `items`, in their order."""

    object: Literal["list"] = "list"
    data: list[Job]


class JobPage(View):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool
    next: str | None = Field(description="give it as `after` to get the next page")
