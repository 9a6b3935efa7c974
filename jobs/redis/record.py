"""The record of a job in Redis: RQ's hash with our fields, prefixed by `adm_`. It is parsed once, when it is read."""

from re import Pattern
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    SkipValidation,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from rq.job import JobStatus as RqStatus

from jobs.contract.caller import CALLER_ID
from jobs.contract.errors import AdmError
from jobs.contract.grids import GridAxes
from jobs.contract.job import CheckpointRecord, ImageRecord, JobError, JobStatus, Progress, Usage
from jobs.contract.request import ResolvedRequest
from jobs.contract.worker_deaths import Deaths
from jobs.redis import keys
from jobs.redis.payload import read_payload
from vocabulary.priorities import Priority

STATUS_OF_RQ = {
    RqStatus.CREATED: JobStatus.QUEUED,
    RqStatus.QUEUED: JobStatus.QUEUED,
    RqStatus.DEFERRED: JobStatus.QUEUED,
    RqStatus.SCHEDULED: JobStatus.QUEUED,
    RqStatus.RATE_LIMITED: JobStatus.QUEUED,
    RqStatus.READY_TO_ENQUEUE: JobStatus.QUEUED,
    RqStatus.STARTED: JobStatus.IN_PROGRESS,
    RqStatus.FINISHED: JobStatus.COMPLETED,
    RqStatus.FAILED: JobStatus.FAILED,
    RqStatus.STOPPED: JobStatus.CANCELLED,
    RqStatus.CANCELED: JobStatus.CANCELLED,
}
RQ_OF_STATUS = {
    JobStatus.QUEUED: RqStatus.QUEUED,
    JobStatus.IN_PROGRESS: RqStatus.STARTED,
    JobStatus.CANCELLING: RqStatus.STARTED,
    JobStatus.COMPLETED: RqStatus.FINISHED,
    JobStatus.FAILED: RqStatus.FAILED,
    JobStatus.CANCELLED: RqStatus.CANCELED,
    JobStatus.EXPIRED: RqStatus.CANCELED,
}
MOST = 2**40  # largest value of a counted field, so that Redis can add such values


class CorruptRecordError(AdmError):
    """A job's record cannot be read. `names` are its corrupt fields; none if its key is no hash."""

    def __init__(self, *names: str) -> None:
        super().__init__("its record in Redis " + (f"is corrupt: {', '.join(names)}" if names else "is no hash"))
        self.names = names


def text_of(pattern: Pattern[str]) -> AfterValidator:
    """Check that a text matches a pattern in full."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"does not match {pattern.pattern}")
        return text

    return AfterValidator(check)


def readable(model: type[BaseModel]) -> BeforeValidator:
    """Parse the JSON of a model; None if it is invalid, because the job can run without this field."""

    def read(text: str | bytes) -> BaseModel | None:
        try:
            return model.model_validate_json(text)
        except ValidationError:
            return None

    return BeforeValidator(read)


Seconds = Annotated[float, Field(ge=0, le=1e10)]  # in microseconds they fit in an index member
Number = Annotated[float, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Token = Annotated[str, text_of(keys.TOKEN)]
Stage = Annotated[str, StringConstraints(pattern="^[a-z0-9_-]{1,32}$")]  # a newer version may have other stages
Work = Json[dict[Stage, Annotated[int, Field(ge=0, le=MOST, strict=True)]]]
WORK: TypeAdapter[dict[str, int]] = TypeAdapter(Work)


class Record(BaseModel):
    """One job. A field that is absent or empty in the hash has its default here."""

    model_config = ConfigDict(frozen=True)

    id: str
    fields: SkipValidation[dict[bytes, bytes]] = Field(repr=False)  # the hash itself
    rq_status: RqStatus = Field(alias="status")
    queue: Annotated[str, text_of(keys.QUEUE)] = Field(alias="origin")
    payload: bytes = Field(b"", alias="data", repr=False)
    item_ids: Json[list[Annotated[str, text_of(keys.JOB_ID)]]] = Field([], alias="adm_items")
    """Ids of the jobs of its call, its own first.

    Only a call's first job has them, if the call was for a grid, or had `items` and an idempotency key.
    """
    grid: Json[GridAxes] | None = Field(None, alias="adm_grid")
    """The axes of the grid whose first job it is; None for other jobs."""
    caller: Annotated[str, text_of(CALLER_ID)] = Field("", alias="adm_caller")
    """Its caller; "" for a job that was made without a key."""
    cost_ms: Count = Field(0, alias="adm_cost_ms")
    """Estimated device time, in milliseconds."""
    share: Number = Field(0.0, alias="adm_share")
    """The length of its turn in virtual seconds (`jobs.callers.turns`)."""
    turn: Number = Field(0.0, alias="adm_turn")
    created_at: Seconds = Field(0.0, alias="adm_created_at")
    expires_at: Seconds = Field(0.0, alias="adm_expires_at")
    """Queued: when the job expires. Running: the earliest time of its removal. Ended: the time of its removal."""
    started_at: Seconds | None = Field(None, alias="adm_started_at")
    ended_at: Seconds | None = Field(None, alias="adm_ended_at")
    estimated_seconds: Seconds | None = Field(None, alias="adm_reckoned_seconds")
    """Estimated time from its creation to its end."""
    token: Token = Field("", alias="adm_token")
    """Id of the execution that may write results."""
    requeued_by: Token = Field("", alias="adm_given_back_by")
    """Id of the last execution that requeued its job."""
    starts: Count = Field(0, alias="adm_attempt")
    """The number of claims so far."""
    deaths: Json[Deaths] = Field(Deaths(), alias="adm_worker_deaths")
    """The deaths of workers that had this job in flight."""
    reached: Annotated[Progress | None, readable(Progress)] = Field(None, alias="adm_reached")
    """The last progress that its last execution reported or started from; None before the first step."""
    checkpoint: Annotated[CheckpointRecord | None, readable(CheckpointRecord)] = Field(None, alias="adm_checkpoint")
    """The checkpoint from which its next attempt can resume; None once it has ended."""
    checkpoint_reached: Annotated[Progress | None, readable(Progress)] = Field(None, alias="adm_checkpoint_reached")
    retries_left: Count = 0
    cancel: Literal["", "1"] = Field("", alias="adm_cancel")
    expired: Literal["", "1"] = Field("", alias="adm_expired")
    work: Work = Field({}, alias="adm_work")
    """Row steps by stage."""
    images: Json[list[ImageRecord]] = Field([], alias="adm_images")
    """Published images, by index."""
    error: Json[JobError] | None = Field(None, alias="adm_error")
    usage: Json[Usage] = Field(Usage(steps=0, device_seconds=0), alias="adm_usage")
    """The usage of its images; zero until it is completed."""
    results: Json[dict[str, Any]] | None = Field(None, alias="adm_results")
    """Its results that are not images."""
    class_name: str | None = Field(None, alias="adm_class_name")
    numerics: str | None = Field(None, alias="adm_numerics")
    body_digest: str = Field("", alias="adm_body")
    request_id: str = Field("", alias="adm_request_id")
    traceparent: str = Field("", alias="adm_traceparent")
    webhook_url: Annotated[str, StringConstraints(pattern="^https?://[!-~]+$")] = Field("", alias="adm_webhook_url")
    worker_name: str = ""

    @classmethod
    def parse(cls, job_id: str, fields: dict[bytes, bytes]) -> Self:
        """Read a hash. Raises: CorruptRecordError."""
        given = {name: decoded(value) for name in NAMES if (value := fields.get(name.encode()))}
        try:
            return cls.model_validate({**given, "id": job_id, "fields": fields, "data": fields.get(b"data", b"")})
        except ValidationError as error:
            raise CorruptRecordError(*dict.fromkeys(str(each["loc"][0]) for each in error.errors())) from error

    @property
    def status(self) -> JobStatus:
        """The status for clients, translated from RQ's only here."""
        status = STATUS_OF_RQ[self.rq_status]
        if status is JobStatus.IN_PROGRESS and self.cancel:
            return JobStatus.CANCELLING
        if status is JobStatus.CANCELLED and self.expired:
            return JobStatus.EXPIRED
        return status

    @property
    def pipeline(self) -> str:
        return self.queue.removeprefix(keys.QUEUE_PREFIX).rpartition(":")[0]

    @property
    def priority(self) -> Priority:
        return cast(Priority, self.queue.rpartition(":")[2])

    @property
    def attempt(self) -> int:
        """The number of its present attempt; 1 before the first."""
        return max(1, self.starts)

    @property
    def is_delayed(self) -> bool:
        """Return whether its status is queued but a delay keeps it out of its queue."""
        return self.rq_status is RqStatus.SCHEDULED

    @property
    def cancel_requested(self) -> bool:
        return bool(self.cancel)

    @property
    def index_member(self) -> str:
        return keys.index_member(self.created_at, self.id)

    def request(self) -> ResolvedRequest:
        """The request it carries.

        Raises: NewerPayloadError, BadPayloadError (`jobs.redis.payload`).
        """
        return read_payload(self.payload)

    def image_facts(self, image: ImageRecord, request: ResolvedRequest) -> dict[str, Any]:
        """The fields of one of its images for clients, without its address."""
        return {
            "index": image.index,
            "sha256": image.sha256,
            "width": image.width,
            "height": image.height,
            "class_label": request.class_label,
            "class_name": self.class_name,
            "seed": request.seed,
            "source": request.source(image.index),
        }


def work_in(text: bytes | None) -> dict[str, int]:
    """Parse only the field `adm_work`; return {} if it is absent or corrupt."""
    try:
        return WORK.validate_python(text or b"{}")
    except ValidationError:
        return {}


def decoded(value: bytes) -> str | bytes:
    """Decode a field's UTF-8. Bytes that are not UTF-8 are returned as they are, and no field accepts them."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


NOT_TEXT = ("id", "fields", "payload")
NAMES = tuple(each.alias or name for name, each in Record.model_fields.items() if name not in NOT_TEXT)  # in the hash
