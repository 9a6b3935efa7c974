"""The queue's interface for the service: read, cancel and delete jobs; `submitter` queues them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from redis.client import Redis

from jobs.callers.quotas import Quotas
from jobs.contract.caller import ANONYMOUS, Caller
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.grids import Grid
from jobs.contract.job import ImageRecord, Job, JobPage, JobStatus
from jobs.queue.drafting import Drafter
from jobs.queue.ledger import Ledger
from jobs.queue.submitting import Submitter
from jobs.queue.webhooks import Webhooks
from jobs.redis import keys, rq_keys
from jobs.redis.record import Record
from jobs.redis.replies import answers, matched
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from jobs.views.estimate import Backlogs
from jobs.views.filters import JobFilter
from jobs.views.fleet import FleetReader
from jobs.views.job_views import Views, readable_request
from jobs.views.load import LoadReader
from vocabulary.priorities import PRIORITIES

READ_AT_ONCE = 100  # jobs per round trip for a filtered list
MOST_READ = 500  # jobs read for one page of a filtered list; about 50 ms
MOST_PAGE_BYTES = 1 << 20  # size of a page's jobs in JSON; a larger first job is a page by itself
ANY_JOB = JobFilter()


class PublishedImage(NamedTuple):
    """A published image, and the seconds for which it will be kept."""

    record: ImageRecord
    kept_seconds: float


class Asked(NamedTuple):
    """The id of a requested job, and the caller who requests it; for other callers the job does not exist."""

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
        drafter = Drafter(redis, settings, self.ledger.now, self.files, self.fleet, self._views, self.quotas)
        self.submitter = Submitter(drafter, self.ledger, self._views, self.quotas)

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
        """The records of jobs, in one round trip for all of them; None for an unknown one."""
        named = [each for each in dict.fromkeys(each.job_id for each in asked) if keys.JOB_ID.fullmatch(each)]
        with self._redis.pipeline(transaction=False) as pipe:
            for each in named:
                pipe.hgetall(rq_keys.job_key(each))
            hashes = dict(zip(named, answers(pipe), strict=True))
        found = {job_id: self.ledger.parse(job_id, fields) for job_id, fields in hashes.items()}
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
        """A page of the jobs that a caller may see, newest first. after: the cursor at which the last page ended.

        mine: only the caller's own jobs, also for an operator. With a filter, a call reads at most MOST_READ jobs, so a
        page may have fewer jobs than `limit` although there are more. It also ends before it exceeds MOST_PAGE_BYTES.
        """
        if after is not None and not keys.INDEX_MEMBER.fullmatch(after):
            raise InvalidRequestError([FieldError("/after", "is not a cursor of this list")])
        index = keys.index(status, "" if caller.may_see("") and not mine else caller.id)
        most, at_once = (limit, limit + 1) if wanted.admits_all else (MOST_READ, READ_AT_ONCE)
        found, cursor, num_read = list[Record](), after, 0
        for member, record in self._newest(index, after, caller, at_once):
            if num_read == most or len(found) == limit:
                return self._page_of(found, cursor)
            cursor, num_read = member, num_read + 1
            if record is not None and wanted.admits(record):
                found.append(record)
        return self._page_of(found, None)

    def _page_of(self, found: Sequence[Record], following: str | None) -> JobPage:
        """A page of these jobs, up to MOST_PAGE_BYTES. following: the cursor after all of them, if more follow."""
        jobs, num_bytes = self._views.of(found), 0
        for number, job in enumerate(jobs):
            num_bytes += len(job.model_dump_json().encode())
            if number and num_bytes > MOST_PAGE_BYTES:
                return JobPage(data=jobs[:number], has_more=True, next=found[number - 1].index_member)
        return JobPage(data=jobs, has_more=following is not None, next=following)

    def _newest(
        self, index: str, after: str | None, caller: Caller, at_once: int
    ) -> Iterator[tuple[str, Record | None]]:
        """The members of an index after a cursor, newest first, with their jobs; None for a removed one."""
        bound, answer = b"+" if after is None else f"({after}".encode(), [b""] * at_once
        while len(answer) == at_once:
            answer = cast(list[bytes], self._redis.zrevrangebylex(index, bound, "-", 0, at_once))
            members = [found for each in answer if (found := matched(keys.INDEX_MEMBER, each))]
            records = self.records([Asked(each[2], caller) for each in members])
            yield from zip((each[0] for each in members), records, strict=True)
            bound = b"(" + answer[-1] if answer else bound

    def grid(self, grid_id: str, caller: Caller = ANONYMOUS) -> Grid:
        """A grid as it is now. Raises: RefusedError for an unknown one."""
        first, ids = self._first_of_grid(grid_id, caller)
        axes = first.grid
        assert axes is not None
        found = self.records([Asked(each, caller) for each in ids])
        shown = {each.id: each for each in self._views.of([record for record in found if record is not None])}
        if first.id not in shown:  # removed in between
            raise unknown_grid(grid_id)
        return Grid.of(first.id, axes, [shown.get(each) for each in ids], self._settings.root_path)

    def cancel_grid(self, grid_id: str, caller: Caller = ANONYMOUS) -> Grid:
        """Cancel all jobs of a grid that have not ended. Raises: RefusedError for an unknown one."""
        for each in self._first_of_grid(grid_id, caller)[1]:
            try:
                self.ledger.request_cancel(each, caller)
            except RefusedError as error:
                if error.kind not in (ErrorKind.JOB_ENDED, ErrorKind.UNKNOWN_JOB):
                    raise
        return self.grid(grid_id, caller)

    def delete_grid(self, grid_id: str, caller: Caller = ANONYMOUS) -> None:
        """Remove all jobs of a grid and their images, the first job last. Raises: RefusedError for an unknown one."""
        for each in reversed(self._first_of_grid(grid_id, caller)[1]):
            self.ledger.delete(each)
            self._images.delete_job(each)

    def _first_of_grid(self, grid_id: str, caller: Caller) -> tuple[Record, list[str]]:
        """The first job of a grid, and the ids of all its jobs."""
        (first,) = self.records([Asked(grid_id, caller)])
        axes = None if first is None else first.grid
        if first is None or axes is None or len(first.item_ids) != axes.num_cells:
            raise unknown_grid(grid_id)
        return first, first.item_ids

    def cancel(self, job_id: str, caller: Caller = ANONYMOUS) -> Job:
        """Cancel a job: at once if it is queued, between two steps if it runs.

        Raises: RefusedError for an unknown job and for one that has ended.
        """
        if not keys.JOB_ID.fullmatch(job_id):
            raise unknown_job(job_id)
        self.ledger.request_cancel(job_id, caller)
        return self.get(job_id, caller)

    def delete(self, job_id: str, caller: Caller = ANONYMOUS) -> None:
        """Remove a job and its images, cancelling it if needed. Raises: RefusedError for an unknown one."""
        self._record(job_id, caller)
        self.ledger.delete(job_id)
        self._images.delete_job(job_id)

    def image(self, job_id: str, index: int, caller: Caller = ANONYMOUS) -> PublishedImage:
        """A published image. Raises: RefusedError for one that is not stored yet or does not exist."""
        record = self._record(job_id, caller)
        is_final, request = record.status.is_final, readable_request(record)
        for each in record.images:
            if each.index == index:
                left = record.expires_at - self.ledger.now()
                kept_seconds = left if is_final else self._settings.retention_seconds
                return PublishedImage(each, kept_seconds)
        if not is_final and request is not None and index in request.indices:
            raise RefusedError(ErrorKind.IMAGE_NOT_READY, f"image {index} of job {job_id} is not stored yet")
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"no image {index} of job {job_id}")

    def image_bytes(self, job_id: str, image: ImageRecord) -> bytes:
        """The PNG of a published image."""
        return self._images.get(job_id, image)

    def backlogs(self, pipelines: Sequence[str]) -> Backlogs:
        """The queued and running work of pipelines."""
        return self._views.backlogs(pipelines)

    def head_ages(self, pipelines: Sequence[str]) -> dict[tuple[str, str], float]:
        """Seconds since the submission of the next job, by pipeline and priority; 0 if none is queued."""
        lines = [(pipeline, priority) for pipeline in pipelines for priority in PRIORITIES]
        with self._redis.pipeline(transaction=False) as pipe:
            for line in lines:
                pipe.lindex(rq_keys.queue_key(keys.queue(*line)), 0)
            heads = [matched(keys.JOB_ID, each or b"") for each in answers(pipe)]
        records = self.records([Asked(head[0] if head else "", ANONYMOUS) for head in heads])
        now = self.ledger.now()
        return {
            line: 0.0 if record is None else max(0.0, now - record.created_at)
            for line, record in zip(lines, records, strict=True)
        }

    def counts(self) -> dict[JobStatus, int]:
        """The number of jobs by status."""
        with self._redis.pipeline(transaction=False) as pipe:
            for status in JobStatus:
                pipe.zcard(keys.index(status))
            return dict(zip(JobStatus, pipe.execute(), strict=True))

    def _record(self, job_id: str, caller: Caller) -> Record:
        (record,) = self.records([Asked(job_id, caller)])
        if record is None:
            raise unknown_job(job_id)
        return record


def unknown_grid(grid_id: str) -> RefusedError:
    return RefusedError(ErrorKind.UNKNOWN_GRID, f"no grid {grid_id[:128]!r}")


def unknown_job(job_id: str) -> RefusedError:
    return RefusedError(ErrorKind.UNKNOWN_JOB, f"no job {job_id[:128]!r}")
