"""The queue as its users see it: submit, look, cancel, delete."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple, cast

from redis.client import Redis

from jobs.callers.caller import ANONYMOUS, Caller
from jobs.callers.quotas import Quotas
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.job import ImageRecord, Job, JobPage, JobStatus
from jobs.contract.request import PRIORITIES, JobRequest
from jobs.queue import keys, rq_registries
from jobs.queue.ledger import Ledger
from jobs.queue.record import Record
from jobs.queue.rubbish import INDEX_MEMBER, JOB_ID, answers, matched
from jobs.queue.submitting import Submission, Submitted
from jobs.queue.submitting_items import ItemsSubmission, ItemsSubmitter
from jobs.queue.webhooks import Webhooks
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.views.estimate import Backlogs
from jobs.views.filters import JobFilter
from jobs.views.fleet import FleetReader
from jobs.views.job_views import Views, readable_request
from jobs.views.load import LoadReader

READ_AT_ONCE = 100  # jobs of a round trip, where a list is filtered
MOST_READ = 500  # jobs that are read for one page of a filtered list: some 50 ms
ANY_JOB = JobFilter()


class PublishedImage(NamedTuple):
    """An image that may be fetched, and for how long it is kept."""

    record: ImageRecord
    kept_seconds: float


class Asked(NamedTuple):
    """A job that somebody asks for; of others than its caller and operators, it does not exist."""

    job_id: str
    caller: Caller


class JobQueue:
    """The jobs of one Redis; all calls block."""

    def __init__(self, redis: Redis, settings: Settings, images: ImageStore) -> None:
        self._redis, self._settings, self._images = redis, settings, images
        self.ledger = Ledger(redis, settings.retention_seconds, settings.worker_deaths_alone)
        self.files = FileStore(redis, settings, images.objects)
        self.fleet = FleetReader(redis, settings.fleet_refresh_seconds)
        self.webhooks = Webhooks(redis)
        self.loads = LoadReader(redis, self.fleet, settings.retention_seconds)
        self._views = Views(redis, self.fleet, settings.root_path)
        self.quotas = Quotas(redis, settings)
        self._submitting = Lock()  # what is queued is counted before more of it is queued
        self._submitter = ItemsSubmitter(redis, settings, self.ledger, self.files, self.fleet, self._views, self.quotas)

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> Submitted:
        """Queue a job.

        Raises: InvalidRequestError; RefusedError when the queue is full or the key belongs to another body.
        """
        (outcome,) = self.submit_all([Submission(request, ANONYMOUS, idempotency_key)])
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    def submit_all(self, submissions: Sequence[Submission]) -> list[Submitted | RefusedError]:
        """Queue jobs as if one by one, in a few round trips for all of them; what is refused stops no other."""
        with self._submitting:
            return self._submitter.submit_all(submissions)

    def submit_items(self, submission: ItemsSubmission) -> list[Submitted]:
        """Queue the jobs of one call, all of them or none. Raises: RefusedError."""
        with self._submitting:
            return self._submitter.submit_items(submission)

    def get(self, job_id: str, caller: Caller = ANONYMOUS) -> Job:
        """One job. Raises: RefusedError for an unknown one."""
        (outcome,) = self.get_all([Asked(job_id, caller)])
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    def get_all(self, asked: Sequence[Asked]) -> list[Job | RefusedError]:
        """Jobs by id, in two round trips for all of them."""
        records = self.records(asked)
        shown = {each.id: each for each in records if each is not None}
        jobs = {each.id: each for each in self._views.of(list(shown.values()))}
        pairs = zip(asked, records, strict=True)
        return [unknown_job(each.job_id) if record is None else jobs[record.id] for each, record in pairs]

    def records(self, asked: Sequence[Asked]) -> list[Record | None]:
        """What Redis keeps of jobs, in one round trip for all of them; None for an unknown one."""
        named = [each for each in dict.fromkeys(each.job_id for each in asked) if JOB_ID.fullmatch(each)]
        with self._redis.pipeline(transaction=False) as pipe:
            for each in named:
                pipe.hgetall(rq_registries.job_key(each))
            hashes = dict(zip(named, answers(pipe), strict=True))
        found = {job_id: self.ledger.sound(job_id, fields) for job_id, fields in hashes.items()}
        records = (found.get(each.job_id) for each in asked)
        return [
            record if record is not None and each.caller.may_see(record.caller) else None
            for each, record in zip(asked, records, strict=True)
        ]

    def page(
        self,
        status: JobStatus | None = None,
        limit: int = 20,
        after: str | None = None,
        caller: Caller = ANONYMOUS,
        *,
        mine: bool = False,
        wanted: JobFilter = ANY_JOB,
    ) -> JobPage:
        """Jobs that a caller may see, newest first, behind a cursor.

        mine: of an operator too, its own jobs alone. With a filter, a call reads MOST_READ jobs at most, so that a page
        may have fewer jobs than `limit` although there are more.
        """
        if after is not None and not INDEX_MEMBER.fullmatch(after):
            raise InvalidRequestError([FieldError("/after", "is not a cursor of this list")])
        index = keys.index(status, "" if caller.may_see("") and not mine else caller.id)
        most, at_once = (limit, limit + 1) if wanted.admits_all else (MOST_READ, READ_AT_ONCE)
        found, cursor, num_read = list[Record](), after, 0
        for member, record in self._newest(index, after, caller, at_once):
            if num_read == most or len(found) == limit:
                return JobPage(data=self._views.of(found), has_more=True, next=cursor)
            cursor, num_read = member, num_read + 1
            if record is not None and wanted.admits(record):
                found.append(record)
        return JobPage(data=self._views.of(found), has_more=False, next=None)

    def _newest(
        self, index: str, after: str | None, caller: Caller, at_once: int
    ) -> Iterator[tuple[str, Record | None]]:
        """The members of an index behind a cursor, newest first, with their jobs; None for one that has gone."""
        bound, answer = b"+" if after is None else f"({after}".encode(), [b""] * at_once
        while len(answer) == at_once:
            answer = cast(list[bytes], self._redis.zrevrangebylex(index, bound, "-", 0, at_once))
            members = [found for each in answer if (found := matched(INDEX_MEMBER, each))]
            records = self.records([Asked(each[2], caller) for each in members])
            yield from zip((each[0] for each in members), records, strict=True)
            bound = b"(" + answer[-1] if answer else bound

    def cancel(self, job_id: str, caller: Caller = ANONYMOUS) -> Job:
        """Cancel a job: at once if it is queued, between two steps if it runs.

        Raises: RefusedError for an unknown job and for one that has ended.
        """
        if not JOB_ID.fullmatch(job_id):
            raise unknown_job(job_id)
        self.ledger.request_cancel(job_id, caller)
        return self.get(job_id, caller)

    def delete(self, job_id: str, caller: Caller = ANONYMOUS) -> None:
        """Remove a job and its images, cancelling it if needed. Raises: RefusedError for an unknown one."""
        self._record(job_id, caller)
        self.ledger.delete(job_id)
        self._images.delete_job(job_id)

    def image(self, job_id: str, index: int, caller: Caller = ANONYMOUS) -> PublishedImage:
        """A published image. Raises: RefusedError for one that is not there yet, and for one that never will be."""
        record = self._record(job_id, caller)
        is_final, request = record.status.is_final, readable_request(record)
        for each in record.images:
            if each.index == index:
                left = record.expires_at - self.ledger.now()
                kept_seconds = left if is_final else self._settings.retention_seconds
                return PublishedImage(each, kept_seconds)
        if not is_final and request is not None and index in request.indices:
            raise RefusedError(ErrorKind.IMAGE_NOT_READY, f"image {index} of job {job_id} is not there yet")
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"no image {index} of job {job_id}")

    def image_bytes(self, job_id: str, image: ImageRecord) -> bytes:
        """The PNG of a published image."""
        return self._images.get(job_id, image)

    def backlogs(self, pipelines: Sequence[str]) -> Backlogs:
        """What is queued for pipelines."""
        return self._views.backlogs(pipelines)

    def head_ages(self, pipelines: Sequence[str]) -> dict[tuple[str, str], float]:
        """Seconds since the submission of the job that is next, by pipeline and priority; 0 where none is queued."""
        lines = [(pipeline, priority) for pipeline in pipelines for priority in PRIORITIES]
        with self._redis.pipeline(transaction=False) as pipe:
            for line in lines:
                pipe.lindex(rq_registries.queue_key(keys.queue(*line)), 0)
            heads = [matched(JOB_ID, each or b"") for each in answers(pipe)]
        records = self.records([Asked(head[0] if head else "", ANONYMOUS) for head in heads])
        now = self.ledger.now()
        return {
            line: 0.0 if record is None else max(0.0, now - record.created_at)
            for line, record in zip(lines, records, strict=True)
        }

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs there are, by status."""
        with self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(keys.index(status))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    def _record(self, job_id: str, caller: Caller) -> Record:
        (record,) = self.records([Asked(job_id, caller)])
        if record is None:
            raise unknown_job(job_id)
        return record


def unknown_job(job_id: str) -> RefusedError:
    return RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id[:128]!r}")
