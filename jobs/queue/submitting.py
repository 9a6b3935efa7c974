"""How requests become queued jobs: resolved, refused where there is no room, and written together."""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.client import Redis

from jobs.callers import turns
from jobs.callers.caller import Caller
from jobs.callers.quotas import Quotas
from jobs.callers.turns import Place
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.job import Job, JobStatus
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import DRAWN_SEED_BELOW, JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from jobs.contract.work import work_of
from jobs.queue import keys, rq_registries
from jobs.queue.capacity import Room, ask_room, take_room
from jobs.queue.idempotency import MISMATCH, body_digest, job_id_of
from jobs.queue.ledger import Ledger
from jobs.queue.record import Record
from jobs.queue.rubbish import answers
from jobs.queue.server import ServerReader
from jobs.queue.webhook_targets import check_webhook
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.views.estimate import Backlog, Backlogs, Estimator
from jobs.views.fleet import FleetReader
from jobs.views.job_views import COUNT, Views, ask_backlogs, progress_of, take_backlogs

START_SECONDS = 5.0  # between two tries of a client that waits for a worker to load


class Submission(NamedTuple):
    """A request for a job.

    With a key, the same key and body of a caller give the same job, and exactly one is queued however many race.
    """

    request: JobRequest
    caller: Caller  # has no default, so that no route forgets whose the job is
    idempotency_key: str | None = None
    request_id: str = ""  # of the HTTP request, for the worker's log
    traceparent: str = ""  # of its trace, which the worker continues


class Submitted(NamedTuple):
    job: Job
    replayed: bool  # the job was there already, under the same idempotency key


class Order(NamedTuple):
    """A submission that can be queued, if there is room."""

    job_id: str
    submission: Submission
    request: ResolvedRequest
    pipeline: PipelineInfo
    body_digest: str

    @property
    def line(self) -> tuple[str, str]:
        """Its queue, and whose turns it takes there."""
        return keys.queue(self.request.model, self.request.priority), self.submission.caller.id


class Draft(NamedTuple):
    """A job that is to be queued, and what is to be told of it then."""

    record: Record
    request: ResolvedRequest
    backlog: Backlog
    reckoned: float | None


class Counted(NamedTuple):
    """What is there already, as it was read for several orders and with those that have been accepted since."""

    backlogs: Backlogs
    room: Room
    places: Counter[tuple[str, str]]  # how many jobs would go before another one, by line
    queued_ms: Counter[str]  # estimated cost of the queued jobs of each caller

    def add(self, order: Order, draft: Draft) -> None:
        """Count a job that has been accepted."""
        self.backlogs.add(draft.request, draft.record.work)
        self.places[order.line] += 1
        self.queued_ms[order.submission.caller.id] += draft.record.cost_ms


class Submitter:
    """Queues jobs, many at once."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        ledger: Ledger,
        files: FileStore,
        fleet: FleetReader,
        views: Views,
        quotas: Quotas,
    ) -> None:
        self._redis, self._settings, self._ledger, self._quotas = redis, settings, ledger, quotas
        self._files, self._fleet, self._views = files, fleet, views
        self._server = ServerReader(redis)

    def submit_all(self, submissions: Sequence[Submission]) -> list[Submitted | RefusedError]:
        """Queue jobs as if one by one; what is refused stops no other."""
        outcomes: dict[int, Submitted | RefusedError] = {}
        orders: dict[int, Order] = {}
        charged = self._quotas.take_posts(Counter(each.caller for each in submissions))
        for index, each in enumerate(submissions):
            try:
                if each.caller not in charged:
                    self._quotas.take_post(each.caller)
                understood = self._understand(each)
            except RefusedError as error:
                outcomes[index] = error
            else:
                if isinstance(understood, Order):
                    orders[index] = understood
                else:
                    outcomes[index] = understood
        if orders:
            outcomes |= self._queue_all(orders)
        return [outcomes[index] for index in range(len(submissions))]

    def _queue_all(self, orders: Mapping[int, Order]) -> dict[int, Submitted | RefusedError]:
        """Queue jobs: one that has a key by itself, all that have none together."""
        counted = self._count(list(orders.values()))
        outcomes: dict[int, Submitted | RefusedError] = {}
        drafts: dict[int, Draft] = {}
        for index, order in orders.items():
            try:
                draft = self._draft(order, counted)
                if order.submission.idempotency_key is not None:
                    outcomes[index] = self._queue_keyed(order, draft, counted)
                else:
                    drafts[index] = draft
                    counted.add(order, draft)
            except RefusedError as error:
                outcomes[index] = error
        for index, refusal in self._charge(orders, drafts).items():
            outcomes[index] = refusal
            del drafts[index]
        places = self._ledger.enqueue([each.record for each in drafts.values()])
        assert places is not None, "ids drawn at random are new"
        for (index, draft), place in zip(drafts.items(), places, strict=True):
            outcomes[index] = Submitted(self._view(draft, place), False)
        return outcomes

    def _charge(self, orders: Mapping[int, Order], drafts: Mapping[int, Draft]) -> dict[int, RefusedError]:
        """Charge what jobs cost, a caller's together where its quota allows all of them; returns whose it refuses."""
        callers = {index: orders[index].submission.caller for index in drafts}
        costs = Counter[Caller]()
        for index, draft in drafts.items():
            costs[callers[index]] += draft.record.cost_ms
        charged, refused = self._quotas.take_costs(costs), dict[int, RefusedError]()
        for index, draft in drafts.items():
            try:
                if callers[index] not in charged:
                    self._quotas.take_cost(callers[index], draft.record.cost_ms)
            except RefusedError as error:
                refused[index] = error
        return refused

    def _understand(self, submission: Submission) -> Order | Submitted:
        """An order, or the job that the submission's key stands for already."""
        key, digest = submission.idempotency_key, body_digest(submission.request)
        job_id = job_id_of(submission.caller, key)
        if key is not None and (present := self._ledger.read(job_id)) is not None:
            return self._replay(present, digest)  # before anything that may have changed since is checked
        return self._order(job_id, submission, digest)

    def _order(self, job_id: str, submission: Submission, digest: str) -> Order:
        request = submission.request
        pipeline = self._pipeline(request.model or self._settings.default_model)
        check_webhook(request.webhook_url, self._settings)
        resolved = resolve(request, pipeline, lambda: secrets.randbelow(DRAWN_SEED_BELOW))
        return Order(job_id, submission, resolved, pipeline, digest)

    def _pipeline(self, name: str) -> PipelineInfo:
        """A pipeline by name.

        Raises: InvalidRequestError for one that no worker ever announced or that was retired; RefusedError while it may
        still be loading.
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

    def _count(self, orders: Sequence[Order]) -> Counted:
        fleet, names = self._fleet.read(), sorted({each.pipeline.id for each in orders})
        lines = dict.fromkeys(each.line for each in orders)
        callers = dict.fromkeys(each.submission.caller.id for each in orders)
        with self._redis.pipeline(transaction=False) as pipe:
            ask_backlogs(pipe, fleet, names)
            ask_room(pipe)
            for queue, caller in lines:
                turns.ask_place(pipe, rq_registries.queue_key(queue), rq_registries.job_key(""), queue, caller)
            for caller in callers:
                pipe.zcard(keys.index(JobStatus.QUEUED, caller))
                pipe.hget(keys.CALLERS_QUEUED, caller)
            told = iter(answers(pipe))
        backlogs, room = take_backlogs(told, fleet, names), take_room(told, self._settings, self._server)
        places = Counter({line: next(told) or 0 for line in lines})
        queued_ms = Counter({caller: cost_of(next(told), next(told)) for caller in callers})
        return Counted(backlogs, room, places, queued_ms)

    def _queue_keyed(self, order: Order, draft: Draft, counted: Counted) -> Submitted:
        """Queue a job that has a key, unless another call of that key came first."""
        self._quotas.take_cost(order.submission.caller, draft.record.cost_ms)
        record, created = self._ledger.submit(draft.record)
        if not created:
            return self._replay(record, order.body_digest)
        counted.add(order, draft)
        return Submitted(self._views.of([draft.record])[0], False)

    def _draft(self, order: Order, counted: Counted) -> Draft:
        """A job as it can be queued. Raises: RefusedError where there is no room for it."""
        request, backlog = order.request, counted.backlogs.of(order.pipeline.id)
        self._refuse_if_full(backlog)
        counted.room.take()
        caller, work = order.submission.caller, work_of(request)
        cost_ms = Estimator(self._fleet.read()).cost_ms(order.pipeline.id, work)
        self._quotas.refuse_above_queued(caller, counted.queued_ms[caller.id], cost_ms)
        self._hold_files(request, caller)
        reckoned = self._views.reckoned_seconds(backlog, request, counted.places[order.line])
        record = self._ledger.draft(
            order.job_id,
            request,
            class_name=order.pipeline.class_name(request.class_label),
            work=work,
            reckoned_seconds=reckoned,
            cost_ms=cost_ms,
            body_digest=order.body_digest,
            request_id=order.submission.request_id,
            traceparent=order.submission.traceparent,
            caller=caller,
        )
        return Draft(record, request, backlog, reckoned)

    def _view(self, draft: Draft, place: Place) -> Job:
        """A job as it was queued."""
        queue = self._views.queue_info(draft.backlog, draft.request, place, draft.reckoned)
        return self._views.view(draft.record, draft.request, queue, progress_of(draft.record, draft.request, None))

    def _replay(self, record: Record, digest: str) -> Submitted:
        if record.text("adm_body") != digest:
            raise RefusedError(ErrorKind.IDEMPOTENCY_MISMATCH, MISMATCH)
        return Submitted(self._views.of([record])[0], True)

    def _hold_files(self, request: ResolvedRequest, caller: Caller) -> None:
        """Keep the files of a job until it has started and for as long after as it is kept then."""
        if not request.images:
            return
        held = self._files.hold(request.images, request.expires_in + self._settings.retention_seconds, caller)
        unknown = [index for index, record in enumerate(held) if record is None]
        if unknown:
            detail = "no such file: it was never uploaded, was removed or has expired"
            raise InvalidRequestError([FieldError(f"/images/{index}", detail) for index in unknown])

    def _refuse_if_full(self, backlog: Backlog) -> None:
        queued, limit = Estimator(self._fleet.read()).queued_seconds(backlog), self._settings.queue_limit_seconds
        if queued is not None and queued > limit:
            others = ", ".join(repr(each.pipeline) for each in backlog.beside)
            raise RefusedError(
                ErrorKind.QUEUE_FULL,
                f"{queued:.0f} s of work are queued for the workers of {backlog.pipeline!r}"
                f"{others and f', which hold {others} too'}; the limit is {limit:.0f} s (ADM_QUEUE_LIMIT_SECONDS)",
                retry_after_seconds=queued - limit,
            )


def cost_of(num_queued: int | None, counted_ms: bytes | None) -> int:
    """What a caller's queued jobs cost; 0 where none is queued, whatever damaged jobs have left in the counter."""
    return int(counted_ms) if num_queued and counted_ms is not None and COUNT.fullmatch(counted_ms) else 0
