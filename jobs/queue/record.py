"""A job as it lies in Redis: RQ's hash with our fields in it, prefixed by `adm_`."""

import json
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from rq.job import JobStatus as RqStatus

from jobs.contract.job import CheckpointRecord, ImageRecord, ImageView, JobError, JobStatus, Progress, Usage
from jobs.contract.request import Priority, ResolvedRequest
from jobs.queue import keys
from jobs.queue.deaths import Deaths
from jobs.queue.payload import read_payload

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


@dataclass(frozen=True)
class Record:
    """One job's hash, without damage (`jobs.queue.soundness`); values are decoded when asked for."""

    id: str
    fields: dict[bytes, bytes]

    def text(self, name: str) -> str:
        return self.fields.get(name.encode(), b"").decode()

    def number(self, name: str) -> float | None:
        value = self.fields.get(name.encode())
        return None if not value else float(value)

    @property
    def status(self) -> JobStatus:
        """The status clients see; the one place where RQ's are translated."""
        status = STATUS_OF_RQ[RqStatus(self.text("status"))]
        if status is JobStatus.IN_PROGRESS and self.cancel_requested:
            return JobStatus.CANCELLING
        if status is JobStatus.CANCELLED and self.text("adm_expired"):
            return JobStatus.EXPIRED
        return status

    @property
    def queue(self) -> str:
        return self.text("origin")

    @property
    def pipeline(self) -> str:
        return self.queue.removeprefix(keys.QUEUE_PREFIX).rpartition(":")[0]

    @property
    def priority(self) -> Priority:
        return cast(Priority, self.queue.rpartition(":")[2])

    @property
    def item_ids(self) -> list[str]:
        """Ids of the jobs of its call, its own first; of a call with `items` and a key, whose id is the first job's."""
        ids: list[str] = json.loads(self.text("adm_items") or "[]")
        return ids

    @property
    def caller(self) -> str:
        """Whose it is; "" where it was made without a key."""
        return self.text("adm_caller")

    @property
    def cost_ms(self) -> int:
        """Estimated milliseconds of a device."""
        return int(self.number("adm_cost_ms") or 0)

    @property
    def share(self) -> float:
        """How long its turn lasts, in virtual seconds (`jobs.callers.turns`)."""
        return self.number("adm_share") or 0.0

    @property
    def created_at(self) -> float:
        return self.number("adm_created_at") or 0.0

    @property
    def expires_at(self) -> float:
        """While it waits: when it is given up. While it runs: until when it is kept at least; once ended, exactly."""
        return self.number("adm_expires_at") or 0.0

    @property
    def token(self) -> str:
        """Id of the execution that may write results."""
        return self.text("adm_token")

    @property
    def given_back_by(self) -> str:
        """Id of the last execution that put it back into its queue itself."""
        return self.text("adm_given_back_by")

    @property
    def starts(self) -> int:
        """How often a worker has taken it."""
        return int(self.number("adm_attempt") or 0)

    @property
    def attempt(self) -> int:
        """The attempt it is in, or waits for as its first."""
        return max(1, self.starts)

    @property
    def deaths(self) -> Deaths:
        """The deaths of workers that had this job in flight."""
        text = self.text("adm_worker_deaths")
        return Deaths.model_validate_json(text) if text else Deaths()

    @property
    def reached(self) -> Progress | None:
        """What its last execution reported last, or started from; None before the first step, and if unreadable."""
        try:
            return Progress.model_validate_json(self.fields.get(b"adm_reached", b""))
        except ValidationError:
            return None

    @property
    def is_delayed(self) -> bool:
        """Whether it is queued, but not in its queue yet."""
        return self.text("status") == RqStatus.SCHEDULED.value

    @property
    def retries_left(self) -> int:
        return int(self.number("retries_left") or 0)

    @property
    def cancel_requested(self) -> bool:
        return bool(self.text("adm_cancel"))

    @property
    def index_member(self) -> str:
        return keys.index_member(self.created_at, self.id)

    @property
    def work(self) -> dict[str, int]:
        """Row steps by stage."""
        work: dict[str, int] = json.loads(self.text("adm_work") or "{}")
        return work

    @property
    def images(self) -> list[ImageRecord]:
        """Published images, by index."""
        return [ImageRecord(**each) for each in json.loads(self.text("adm_images") or "[]")]

    @property
    def checkpoint(self) -> CheckpointRecord | None:
        """From where its next attempt may go on; none once it has ended, and none that cannot be read."""
        try:
            return CheckpointRecord.model_validate_json(self.fields.get(b"adm_checkpoint", b""))
        except ValidationError:
            return None

    @property
    def error(self) -> JobError | None:
        text = self.text("adm_error")
        return JobError.model_validate_json(text) if text else None

    @property
    def usage(self) -> Usage:
        """What its images cost; nothing until it is completed."""
        text = self.text("adm_usage")
        return Usage.model_validate_json(text) if text else Usage(steps=0, device_seconds=0)

    @property
    def results(self) -> dict[str, Any] | None:
        """What it found that is not an image."""
        text = self.text("adm_results")
        results: dict[str, Any] | None = json.loads(text) if text else None
        return results

    def request(self) -> ResolvedRequest:
        """The request it carries.

        Raises: NewerPayloadError, BadPayloadError (`jobs.queue.payload`).
        """
        return read_payload(self.fields.get(b"data", b""))

    def image_view(self, image: ImageRecord, request: ResolvedRequest, root_path: str) -> ImageView:
        """One of its images as clients see it, of a service that is published under a path."""
        return ImageView(
            index=image.index,
            url=f"{root_path}/v1/jobs/{self.id}/images/{image.index}",
            sha256=image.sha256,
            width=image.width,
            height=image.height,
            class_label=request.class_label,
            class_name=self.text("adm_class_name") or None,
            seed=request.seed,
            source=request.source(image.index),
        )
