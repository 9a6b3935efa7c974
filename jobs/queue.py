"""The queue as its users see it: submit, look, cancel, delete."""

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple, cast
from uuid import uuid4

from redis.client import Redis

from jobs import books, keys
from jobs.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.estimate import Backlog, Estimator
from jobs.files import FileStore
from jobs.fleet import FleetReader
from jobs.images import ImageStore
from jobs.job import ImageRecord, Job, JobPage, JobStatus
from jobs.ledger import Ledger
from jobs.pipelines import PipelineInfo
from jobs.record import Record
from jobs.request import DRAWN_SEED_BELOW, JobRequest, ResolvedRequest
from jobs.resolution import resolve
from jobs.rubbish import INDEX_MEMBER, JOB_ID, answers, matched
from jobs.settings import Settings
from jobs.views import Views, progress_of, readable_request, view
from jobs.work import work_of

START_SECONDS = 5.0  # between two tries of a client that waits for the first worker to load


class Submitted(NamedTuple):
    job: Job
    replayed: bool  # the job was there already, under the same idempotency key


class PublishedImage(NamedTuple):
    """An image that may be fetched, and until when it is kept."""

    record: ImageRecord
    kept_until: float


class JobQueue:
    """The jobs of one Redis; all calls block."""

    def __init__(self, redis: Redis, settings: Settings, images: ImageStore) -> None:
        self._redis, self._settings, self._images = redis, settings, images
        self.ledger = Ledger(redis, settings.retention_seconds, settings.worker_deaths_alone)
        self.files = FileStore(redis, settings, images.objects)
        self.fleet = FleetReader(redis, settings.fleet_refresh_seconds)
        self._views = Views(redis, self.fleet)

    def submit(self, request: JobRequest, idempotency_key: str | None = None, caller: str = "") -> Submitted:
        """Queue a job.

        With a key, the same key and body give the same job, and exactly one is queued however many race.
        Raises: InvalidRequestError; RefusedError when the queue is full or the key belongs to another body.
        """
        digest = body_digest(request)
        job_id = uuid4().hex if idempotency_key is None else keyed_id(caller, idempotency_key)
        if idempotency_key is not None and (present := self.ledger.read(job_id)) is not None:
            return self._replay(present, digest)  # before anything that may have changed since is checked
        pipeline = self.pipeline(request.model or self._settings.default_model)
        resolved = resolve(request, pipeline, lambda: secrets.randbelow(DRAWN_SEED_BELOW))
        backlog = self.backlogs([pipeline.id])[pipeline.id]
        self._refuse_if_full(backlog)
        self._hold_files(resolved)
        reckoned = self._views.reckoned_seconds(backlog, resolved)
        queue = self._views.queue_info(backlog, resolved, backlog.lengths[resolved.priority], reckoned)
        record, created = self.ledger.submit(
            job_id,
            resolved,
            class_name=pipeline.class_name(resolved.class_label),
            work=work_of(resolved),
            reckoned_seconds=reckoned,
            body_digest=digest,
            is_new=idempotency_key is None,
        )
        if not created:
            return self._replay(record, digest)
        return Submitted(view(record, resolved, queue, progress_of(record, resolved, None)), False)

    def get(self, job_id: str) -> Job:
        """One job. Raises: RefusedError for an unknown one."""
        return self._views.of([self._record(job_id)])[0]

    def page(self, status: JobStatus | None = None, limit: int = 20, after: str | None = None) -> JobPage:
        """Jobs, newest first, behind a cursor."""
        if after is not None and not INDEX_MEMBER.fullmatch(after):
            raise InvalidRequestError([FieldError("/after", "is not a cursor of this list")])
        bound = "+" if after is None else f"({after}"
        answer = self._redis.zrevrangebylex(keys.index(status), bound, "-", 0, limit + 1)
        members = [found for each in cast(list[bytes], answer) if (found := matched(INDEX_MEMBER, each))]
        shown = members[:limit]
        with self._redis.pipeline(transaction=False) as pipe:
            for member in shown:
                pipe.hgetall(books.job_key(member[2]))
            hashes = zip(shown, answers(pipe), strict=True)
        records = [record for member, fields in hashes if (record := self.ledger.sound(member[2], fields))]
        has_more = len(members) > limit
        return JobPage(data=self._views.of(records), has_more=has_more, next=shown[-1][0] if has_more else None)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, between two steps if it runs.

        Raises: RefusedError for an unknown job and for one that has ended.
        """
        self._record(job_id)
        self.ledger.request_cancel(job_id)
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Remove a job and its images, cancelling it if needed. Raises: RefusedError for an unknown one."""
        self._record(job_id)
        self.ledger.delete(job_id)
        self._images.delete_job(job_id)

    def image(self, job_id: str, index: int) -> PublishedImage:
        """A published image. Raises: RefusedError for one that is not there yet, and for one that never will be."""
        record = self._record(job_id)
        is_final, request = record.status.is_final, readable_request(record)
        for each in record.images:
            if each.index == index:
                kept_until = record.expires_at if is_final else time.time() + self._settings.retention_seconds
                return PublishedImage(each, kept_until)
        if not is_final and request is not None and index in request.indices:
            raise RefusedError(ErrorKind.IMAGE_NOT_READY, f"image {index} of job {job_id} is not there yet")
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"no image {index} of job {job_id}")

    def image_bytes(self, job_id: str, image: ImageRecord) -> bytes:
        """The PNG of a published image."""
        return self._images.get(job_id, image)

    def pipeline(self, name: str) -> PipelineInfo:
        """A pipeline by name.

        Raises: InvalidRequestError for one that no worker ever announced or that was retired; RefusedError while no
        pipeline at all is known, because no worker has started yet.
        """
        found = self.fleet.read().pipelines.get(name) or self.fleet.read(fresh=True).pipelines.get(name)
        if found is not None:
            return found
        known = ", ".join(self.fleet.read().pipelines)
        if not known:
            raise RefusedError(
                ErrorKind.UNAVAILABLE,
                f"no pipeline is known, {name!r} neither: no worker has started yet",
                retry_after_seconds=START_SECONDS,
            )
        raise InvalidRequestError([FieldError("/model", f"unknown pipeline {name!r}; there are: {known}")])

    def backlogs(self, pipelines: Sequence[str]) -> dict[str, Backlog]:
        """What is queued, by pipeline."""
        return self._views.backlogs(pipelines)

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs there are, by status."""
        with self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(keys.index(status))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    def _record(self, job_id: str) -> Record:
        record = self.ledger.read(job_id) if JOB_ID.fullmatch(job_id) else None
        if record is None:
            raise RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id[:128]!r}")
        return record

    def _replay(self, record: Record, digest: str) -> Submitted:
        if record.text("adm_body") != digest:
            raise RefusedError(ErrorKind.IDEMPOTENCY_MISMATCH, "this Idempotency-Key was used with another body")
        return Submitted(self._views.of([record])[0], True)

    def _hold_files(self, request: ResolvedRequest) -> None:
        """Keep the files of a job until it has started and for as long after as it is kept then."""
        held = self.files.hold(request.images, request.expires_in + self._settings.retention_seconds)
        unknown = [index for index, record in enumerate(held) if record is None]
        if unknown:
            detail = "no such file: it was never uploaded, was removed or has expired"
            raise InvalidRequestError([FieldError(f"/images/{index}", detail) for index in unknown])

    def _refuse_if_full(self, backlog: Backlog) -> None:
        queued, limit = Estimator(self.fleet.read()).queued_seconds(backlog), self._settings.queue_limit_seconds
        if queued is not None and queued > limit:
            others = ", ".join(repr(each.pipeline) for each in backlog.beside)
            raise RefusedError(
                ErrorKind.QUEUE_FULL,
                f"{queued:.0f} s of work are queued for the workers of {backlog.pipeline!r}"
                f"{others and f', which hold {others} too'}; the limit is {limit:.0f} s",
                retry_after_seconds=queued - limit,
            )


def keyed_id(caller: str, idempotency_key: str) -> str:
    """Id of the job that a caller's key stands for."""
    return "i-" + hashlib.sha256(json.dumps([caller, idempotency_key]).encode()).hexdigest()


def body_digest(request: JobRequest) -> str:
    """What tells two bodies apart: the fields given, whatever their order and spacing."""
    text = json.dumps(request.model_dump(exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
