"""Turns requests into drafts of jobs, ready to be queued: resolves each, and refuses it if there is no room."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.client import Redis

from jobs.callers import turns
from jobs.callers.quotas import Quotas
from jobs.callers.turns import Place
from jobs.contract.caller import Caller
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.job import Job, JobStatus
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import DRAWN_SEED_BELOW, JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import work_of
from jobs.queue import rq_registries
from jobs.queue.capacity import Room, ask_room, has_share, share_of, take_room
from jobs.queue.job_bytes import JobBytes
from jobs.queue.webhook_targets import check_webhook
from jobs.redis import keys, rq_keys
from jobs.redis.payload import payload_of
from jobs.redis.record import Record
from jobs.redis.replies import answers
from jobs.redis.server import ServerReader
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.views.estimate import Backlog, Backlogs, Estimator
from jobs.views.fleet import FleetReader
from jobs.views.job_views import COUNT, Views, ask_backlogs, progress_of, take_backlogs

START_SECONDS = 5.0  # `Retry-After` for a client that waits for a worker to load


def new_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(DRAWN_SEED_BELOW)


class Submission(NamedTuple):
    """A request for a job.

    With an idempotency key, calls of a caller with the same key and body give one job, also if they race.
    """

    request: JobRequest
    caller: Caller  # without a default, so that no route can omit the job's owner
    idempotency_key: str | None = None
    request_id: str = ""  # of the HTTP request, for the worker's log
    traceparent: str = ""  # of its trace, which the worker continues


class Submitted(NamedTuple):
    job: Job
    replayed: bool  # the job existed already under the same idempotency key


class Order(NamedTuple):
    """A resolved submission that can be queued if there is room."""

    job_id: str
    submission: Submission
    request: ResolvedRequest
    pipeline: PipelineInfo
    body_digest: str

    @property
    def line(self) -> tuple[str, str]:
        """The job's queue, and the id of the caller whose turns it takes there."""
        return keys.queue(self.request.model, self.request.priority), self.submission.caller.id


class Admitted(NamedTuple):
    """An order for which there is room, and the counts of the jobs before it."""

    order: Order
    work: dict[str, int]
    cost_ms: int
    backlog: Backlog
    place: int


class Draft(NamedTuple):
    """A job to be queued, and the data for the response."""

    order: Order
    record: Record
    backlog: Backlog
    estimated: float | None


class Counted(NamedTuple):
    """Counts of queued jobs, read once for several orders and updated with each admitted one."""

    backlogs: Backlogs
    room: Room
    places: Counter[tuple[str, str]]  # number of jobs before the next one, by line
    queued_ms: Counter[str]  # estimated cost of the queued jobs of each caller

    def copy(self) -> "Counted":
        return Counted(self.backlogs.copy(), self.room.copy(), self.places.copy(), self.queued_ms.copy())

    def add(self, admitted: Admitted) -> None:
        """Count an order."""
        order = admitted.order
        self.room.take(order.submission.caller)
        self.backlogs.add(order.request, admitted.work)
        self.places[order.line] += 1
        self.queued_ms[order.submission.caller.id] += admitted.cost_ms


class Drafter:
    """Makes orders from submissions, and drafts from orders."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        now: Callable[[], float],
        files: FileStore,
        fleet: FleetReader,
        views: Views,
        quotas: Quotas,
    ) -> None:
        self._redis, self._settings, self._now, self._quotas = redis, settings, now, quotas
        self._files, self._fleet, self._views = files, fleet, views
        self._server, self._job_bytes = ServerReader(redis), JobBytes(redis)
        self._common = rq_registries.common_fields(redis, settings.retention_seconds)

    def order(self, job_id: str, submission: Submission, digest: str, draw_seed: Callable[[], int] = new_seed) -> Order:
        """Resolve a submission. Raises: InvalidRequestError; RefusedError while the pipeline may still be loading."""
        request = submission.request
        pipeline = self._pipeline(request.model or self._settings.default_model)
        check_webhook(request.webhook_url, self._settings)
        resolved = resolve(request, pipeline, draw_seed)
        return Order(job_id, submission, resolved, pipeline, digest)

    def _pipeline(self, name: str) -> PipelineInfo:
        """Find a pipeline by name.

        Raises: InvalidRequestError for a pipeline that was never announced or is retired; RefusedError while a worker
        may still be loading it.
        """
        found = self._fleet.read().pipelines.get(name) or self._fleet.read(fresh=True).pipelines.get(name)
        if found is not None:
            return found
        known = ", ".join(self._fleet.read().pipelines)
        expected = name in (*self._settings.pipelines, self._settings.default_model)
        if not known or (expected and not self._redis.sismember(keys.RETIRED, name)):
            raise RefusedError(
                ErrorKind.UNAVAILABLE,
                f"no worker has loaded the pipeline {name!r} yet",
                retry_after_seconds=START_SECONDS,
            )
        raise InvalidRequestError([FieldError("/model", f"unknown pipeline {name!r}; there are: {known}")])

    def count(self, orders: Sequence[Order]) -> Counted:
        """Read the counts that `admit` needs for these orders, in one round trip."""
        fleet, names = self._fleet.read(), sorted({each.pipeline.id for each in orders})
        lines = dict.fromkeys(each.line for each in orders)
        callers = dict.fromkeys(each.submission.caller.id for each in orders)
        with self._redis.pipeline(transaction=False) as pipe:
            ask_backlogs(pipe, fleet, names)
            ask_room(pipe, callers)
            for queue, caller in lines:
                turns.ask_place(pipe, rq_keys.queue_key(queue), rq_keys.job_key(""), queue, caller)
            for caller in callers:
                pipe.zcard(keys.index(JobStatus.QUEUED, caller))
                pipe.hget(keys.CALLERS_QUEUED, caller)
            replies = iter(answers(pipe))
        backlogs = take_backlogs(replies, fleet, names)
        room = take_room(replies, self._settings, self._server, self._job_bytes, callers)
        places = Counter({line: next(replies) or 0 for line in lines})
        queued_ms = Counter({caller: cost_of(next(replies), next(replies)) for caller in callers})
        return Counted(backlogs, room, places, queued_ms)

    def admit(self, order: Order, counted: Counted, *, charges: bool = False) -> Admitted:
        """Count an order if there is room for it, and if it is to be charged, within its caller's quota.

        Raises: RefusedError; then the order is not counted.
        """
        request, backlog = order.request, counted.backlogs.of(order.pipeline.id)
        caller, work = order.submission.caller, work_of(request)
        self._refuse_if_full(backlog, caller, counted.queued_ms[caller.id])
        counted.room.refuse_if_none(caller, request.webhook_url)
        cost_ms = Estimator(self._fleet.read()).cost_ms(order.pipeline.id, work)
        self._quotas.refuse_above_queued(caller, counted.queued_ms[caller.id], cost_ms)
        self._keep_files(order)
        if charges:
            self._quotas.take_cost(caller, cost_ms)
        admitted = Admitted(order, work, cost_ms, backlog, counted.places[order.line])
        counted.add(admitted)
        return admitted

    def draft(self, admitted: Admitted) -> Draft:
        """Make the job of an order; this takes most of the time, so it follows all checks that may refuse the order."""
        order, backlog = admitted.order, admitted.backlog
        estimated = self._views.estimated_seconds(backlog, order.request, admitted.place)
        return Draft(order, self._record(order, admitted.work, estimated, admitted.cost_ms), backlog, estimated)

    def _record(self, order: Order, work: dict[str, int], estimated_seconds: float | None, cost_ms: int) -> Record:
        request, submission, now = order.request, order.submission, self._now()
        class_name = order.pipeline.class_name(request.class_label)
        queue, description = keys.queue(request.model, request.priority), describe(request, class_name)
        fields = rq_registries.new_job(self._common, queue, payload_of(request), description) | {
            "adm_created_at": now,
            "adm_expires_at": now + request.expires_in,
            "adm_class_name": class_name or "",
            "adm_work": json.dumps(work),
            "adm_reckoned_seconds": "" if estimated_seconds is None else estimated_seconds,
            "adm_body": order.body_digest,
            "adm_request_id": submission.request_id,
            "adm_traceparent": submission.traceparent,
            "adm_webhook_url": request.webhook_url or "",
            "adm_caller": submission.caller.id,
            "adm_cost_ms": cost_ms,
            "adm_share": cost_ms / 1000 / submission.caller.weight,
        }
        # without empty fields, because RQ and `Record` read an absent field as an empty one
        given = {name.encode(): encoded(value) for name, value in fields.items() if value != ""}
        return Record.parse(order.job_id, given)

    def view(self, draft: Draft, place: Place) -> Job:
        """The view of a job that was just queued."""
        request = draft.order.request
        queue = self._views.queue_info(draft.backlog, request, place, draft.estimated)
        return self._views.view(draft.record, request, queue, progress_of(draft.record, request, None))

    def _keep_files(self, order: Order) -> None:
        """Keep the files of a job until it expires if it is not started, and for the retention time after that.

        Raises: InvalidRequestError for files that do not exist, or were reduced for smaller pipelines than the job's.
        """
        request, size = order.request, order.pipeline.stages[0].image_size
        if not request.images:
            return
        seconds = request.expires_in + self._settings.retention_seconds
        errors = []
        for index, record in enumerate(self._files.keep(request.images, seconds, order.submission.caller)):
            if record is None:
                detail = "no such file: it was never uploaded, was removed or has expired"
                errors.append(FieldError(f"/images/{index}", detail))
            elif not record.suffices(size):
                detail = f"was reduced when it was uploaded, and {order.pipeline.id!r} needs {size} px: upload it again"
                errors.append(FieldError(f"/images/{index}", detail))
        if errors:
            raise InvalidRequestError(errors)

    def _refuse_if_full(self, backlog: Backlog, caller: Caller, own_ms: int) -> None:
        """Raise RefusedError if too much work is queued, of all callers or of this one. own_ms: of the latter."""
        queued, limit = Estimator(self._fleet.read()).queued_seconds(backlog), self._settings.queue_limit_seconds
        own, most = own_ms / 1000 / max(1, len(self._fleet.read().workers_of(backlog.pipeline))), share_of(limit)
        # own work may be queued for other workers, so the work of all callers here must be above the share too
        if has_share(caller) and queued is not None and queued > most and own > most:
            raise RefusedError(
                ErrorKind.QUEUE_FULL,
                f"{queued:.0f} s of work are queued for each worker of {backlog.pipeline!r}, and {own:.0f} s of yours, "
                f"counted over all pipelines; your share is {most} s (three quarters of ADM_QUEUE_LIMIT_SECONDS)",
                retry_after_seconds=own - most,
            )
        if queued is not None and queued > limit:
            others = ", ".join(repr(each.pipeline) for each in backlog.beside)
            raise RefusedError(
                ErrorKind.QUEUE_FULL,
                f"{queued:.0f} s of work are queued for the workers of {backlog.pipeline!r}"
                f"{others and f', which serve {others} too'}; the limit is {limit:.0f} s (ADM_QUEUE_LIMIT_SECONDS)",
                retry_after_seconds=queued - limit,
            )


def cost_of(num_queued: int | None, counted_ms: bytes | None) -> int:
    """The cost of a caller's queued jobs; 0 if none is queued, because corrupt jobs may leave the counter above 0."""
    return int(counted_ms) if num_queued and counted_ms is not None and COUNT.fullmatch(counted_ms) else 0


def describe(request: ResolvedRequest, class_name: str | None) -> str:
    """A description for dashboards, without text from the caller."""
    what = "" if request.kind == "generate" else f"{request.kind}, "
    return f"{what}{request.num_rows} x {class_name or 'no class'}, {request.steps} steps of {request.sampler}"


def encoded(value: Any) -> bytes:
    """A value in the form in which Redis stores it."""
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else repr(value)).encode()
