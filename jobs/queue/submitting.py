"""Queues jobs: one job for each of many calls, of which some may be refused; or the jobs of one call, all or none."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple
from uuid import uuid4

from jobs.callers.quotas import Quotas
from jobs.contract.caller import ANONYMOUS, Caller
from jobs.contract.errors import MAX_ERRORS, ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.grids import GridRequest
from jobs.contract.items import JobItems
from jobs.contract.request import JobRequest
from jobs.queue.drafting import Admitted, Counted, Draft, Drafter, Order, Submission, Submitted, new_seed
from jobs.queue.ledger import Above, Group, Ledger
from jobs.redis.record import Record
from jobs.views.job_views import Views

RETRY_SECONDS = 1.0  # in `Retry-After`; by then a removal that is in progress has ended


class ItemsSubmission(NamedTuple):
    """A call for several jobs.

    With an idempotency key, calls of a caller with the same key and body give the same jobs.
    """

    items: JobItems | GridRequest
    caller: Caller
    idempotency_key: str | None = None
    request_id: str = ""
    traceparent: str = ""  # of its trace, which the workers continue


class Submitter:
    """Queues the jobs of calls, from any thread; one thread at a time counts the queued jobs and adds more."""

    def __init__(self, drafter: Drafter, ledger: Ledger, views: Views, quotas: Quotas) -> None:
        self._drafter, self._ledger, self._views, self._quotas = drafter, ledger, views, quotas
        self._submitting = Lock()

    def submit(self, request: JobRequest, idempotency_key: str | None = None) -> Submitted:
        """Queue a job of the anonymous caller.

        Raises: InvalidRequestError; RefusedError if the queue is full or the key was used with another body.
        """
        (outcome,) = self.submit_all([Submission(request, ANONYMOUS, idempotency_key)])
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    def submit_all(self, submissions: Sequence[Submission]) -> list[Submitted | RefusedError]:
        """Queue jobs as if one by one, in a few round trips for all of them; a refused job does not affect others."""
        with self._submitting:
            outcomes = dict[int, Submitted | RefusedError]()
            waiting = dict(enumerate(submissions))
            charged = self._quotas.take_posts(Counter(each.caller for each in submissions))
            for index, each in enumerate(submissions):
                try:
                    if each.caller not in charged:
                        self._quotas.take_post(each.caller)
                except RefusedError as error:
                    outcomes[index] = error
                    del waiting[index]
            while waiting:  # a call with the key of an earlier one waits until that one's job is queued or refused
                orders, waiting = self._first_orders(waiting, outcomes)
                if orders:
                    outcomes |= self._queue_all(orders)
            return [outcomes[index] for index in range(len(submissions))]

    def _first_orders(
        self, submissions: Mapping[int, Submission], outcomes: dict[int, Submitted | RefusedError]
    ) -> tuple[dict[int, Order], dict[int, Submission]]:
        """Return calls' orders, and the calls that repeat an order's key; put the others' outcomes into `outcomes`."""
        orders, later, ids = dict[int, Order](), dict[int, Submission](), set[str]()
        for index, each in submissions.items():
            try:
                found = self._order_or_replay(each)
            except RefusedError as error:
                outcomes[index] = error
                continue
            if isinstance(found, Submitted):
                outcomes[index] = found
            elif found.job_id in ids:
                later[index] = each
            else:
                orders[index] = found
                ids.add(found.job_id)
        return orders, later

    def submit_items(self, submission: ItemsSubmission) -> list[Submitted]:
        """Queue the jobs of one call, or none if it raises. The caller is charged for each job.

        The first job has the id of the idempotency key, and its record names the others, so the key is valid until that
        job is removed.
        Raises: RefusedError.
        """
        with self._submitting:
            caller, key = submission.caller, submission.idempotency_key
            self._quotas.take_post(caller, len(submission.items.requests))
            digest, first_id = body_digest(submission.items), job_id_of(caller, key)
            if key is not None and (present := self._ledger.read(first_id)) is not None:
                return self._replay_items(present, digest)
            orders = self._orders(submission, first_id, digest)
            admitted = self._admit(submission, orders)
            cost_ms = sum(each.cost_ms for each in admitted)
            self._quotas.take_cost(caller, cost_ms)
            drafts = [self._drafter.draft(each) for each in admitted]
            records = [each.record for each in drafts]
            records[0] = Record.parse(first_id, records[0].fields | fields_of_call(submission, records))
            if (outcomes := self._ledger.enqueue([Group(records, self._quotas.most_queued_ms(caller))])) is None:
                return self._replay_items(self._existing(first_id), digest)
            if isinstance(outcome := outcomes[0], Above):
                raise self._quotas.above_queued(outcome.queued_ms, cost_ms)
            return [
                Submitted(self._drafter.view(draft, place), False) for draft, place in zip(drafts, outcome, strict=True)
            ]

    def _queue_all(self, orders: Mapping[int, Order]) -> dict[int, Submitted | RefusedError]:
        """Queue jobs: each job with an idempotency key by itself, those without one together."""
        counted = self._drafter.count(list(orders.values()))
        outcomes, drafts = dict[int, Submitted | RefusedError](), dict[int, Draft]()
        by_caller = defaultdict[Caller, dict[int, Order]](dict)
        for index, order in orders.items():
            by_caller[order.submission.caller][index] = order
        for caller, own in by_caller.items():
            counted, admitted, refused = self._charged(caller, own, counted)
            drafts |= {index: self._drafter.draft(each) for index, each in admitted.items()}
            outcomes |= refused
        unkeyed = {index: each for index, each in drafts.items() if each.order.submission.idempotency_key is None}
        for together in ({index: each} for index, each in drafts.items() if index not in unkeyed):
            outcomes |= self._enqueue(together)
        return outcomes | (self._enqueue(unkeyed) if unkeyed else {})

    def _charged(
        self, caller: Caller, orders: Mapping[int, Order], counted: Counted
    ) -> tuple[Counted, dict[int, Admitted], dict[int, RefusedError]]:
        """Admit a caller's orders and charge their costs: together, or if its quota does not allow all, one by one.

        Returns the new counts too, without refused orders, because these must leave their room to other callers.
        """
        if not self._quotas.limits_cost(caller):
            return counted, *self._admit_each(orders, counted, charges=False)
        tried = counted.copy()
        admitted, refused = self._admit_each(orders, tried, charges=False)
        if self._quotas.allows_cost(caller, sum(each.cost_ms for each in admitted.values())):
            return tried, admitted, refused
        return counted, *self._admit_each(orders, counted, charges=True)

    def _admit_each(
        self, orders: Mapping[int, Order], counted: Counted, *, charges: bool
    ) -> tuple[dict[int, Admitted], dict[int, RefusedError]]:
        admitted, refused = dict[int, Admitted](), dict[int, RefusedError]()
        for index, order in orders.items():
            try:
                admitted[index] = self._drafter.admit(order, counted, charges=charges)
            except RefusedError as error:
                refused[index] = error
        return admitted, refused

    def _enqueue(self, drafts: Mapping[int, Draft]) -> dict[int, Submitted | RefusedError]:
        """Queue jobs in one transaction; only the first job's id may exist already."""
        groups = [
            Group([each.record], self._quotas.most_queued_ms(each.order.submission.caller)) for each in drafts.values()
        ]
        if (found := self._ledger.enqueue(groups)) is None:
            (index, draft), *others = drafts.items()
            assert not others, "ids drawn at random are new"
            try:
                return {index: self._replay(self._existing(draft.record.id), draft.order.body_digest)}
            except RefusedError as error:
                return {index: error}
        outcomes = dict[int, Submitted | RefusedError]()
        for (index, draft), outcome in zip(drafts.items(), found, strict=True):
            if isinstance(outcome, Above):
                outcomes[index] = self._quotas.above_queued(outcome.queued_ms, draft.record.cost_ms)
            else:
                outcomes[index] = Submitted(self._drafter.view(draft, outcome[0]), False)
        return outcomes

    def _existing(self, job_id: str) -> Record:
        """The job that another call with the same idempotency key queued. Raises: RefusedError if it was removed."""
        if (present := self._ledger.read(job_id)) is None:
            detail = "the jobs of this Idempotency-Key are being removed, or a foreign key in Redis has its job's name"
            raise RefusedError(ErrorKind.UNAVAILABLE, detail, retry_after_seconds=RETRY_SECONDS)
        return present

    def _order_or_replay(self, submission: Submission) -> Order | Submitted:
        """An order, or the existing job of the submission's key."""
        key, digest = submission.idempotency_key, body_digest(submission.request)
        job_id = job_id_of(submission.caller, key)
        if key is not None and (present := self._ledger.read(job_id)) is not None:
            return self._replay(present, digest)  # before any check whose result may have changed since
        return self._drafter.order(job_id, submission, digest)

    def _orders(self, submission: ItemsSubmission, first_id: str, digest: str) -> list[Order]:
        """An order for each item. Raises: InvalidRequestError, with the wrong fields of all of them."""
        orders, wrong = list[Order](), list[FieldError]()
        draw_seed = new_seed
        if isinstance(submission.items, GridRequest):  # cells of a grid share one seed
            draw_seed = same_again(new_seed())
        for place, request in enumerate(submission.items.requests):
            item = Submission(request, submission.caller, None, submission.request_id, submission.traceparent)
            try:
                orders.append(self._drafter.order(uuid4().hex if place else first_id, item, digest, draw_seed))
            except InvalidRequestError as error:
                wrong += submission.items.locate(place, error)
                if len(wrong) >= MAX_ERRORS:  # an answer has no more
                    break
        if wrong:
            raise InvalidRequestError(list(dict.fromkeys(wrong)))  # cells of a grid share the errors of a value
        return orders

    def _admit(self, submission: ItemsSubmission, orders: Sequence[Order]) -> list[Admitted]:
        """Admit the orders of one call. Raises: RefusedError if there is no room for all of them."""
        counted, admitted = self._drafter.count(orders), list[Admitted]()
        for place, order in enumerate(orders):
            try:
                admitted.append(self._drafter.admit(order, counted))
            except InvalidRequestError as error:
                raise InvalidRequestError(submission.items.locate(place, error)) from error
        return admitted

    def _replay(self, record: Record, digest: str) -> Submitted:
        refuse_other_body(record, digest)
        return Submitted(self._views.of([record])[0], True)

    def _replay_items(self, first: Record, digest: str) -> list[Submitted]:
        """The jobs of a call that are still kept."""
        refuse_other_body(first, digest)
        kept = [record for each in first.item_ids if (record := self._ledger.read(each)) is not None]
        return [Submitted(job, True) for job in self._views.of(kept)]


def fields_of_call(submission: ItemsSubmission, records: Sequence[Record]) -> dict[bytes, bytes]:
    """Fields of the first job's record about its call: the ids of all jobs, and a grid's axes."""
    ids = json.dumps([each.id for each in records]).encode()
    if isinstance(submission.items, GridRequest):
        axes = submission.items.model_dump_json(include={"x", "y"})
        return {b"adm_items": ids, b"adm_grid": axes.encode()}
    return {} if submission.idempotency_key is None else {b"adm_items": ids}


def same_again(seed: int) -> Callable[[], int]:
    return lambda: seed


def refuse_other_body(record: Record, digest: str) -> None:
    if record.body_digest != digest:
        raise RefusedError(ErrorKind.IDEMPOTENCY_MISMATCH, "this Idempotency-Key was used with another body")


def job_id_of(caller: Caller, idempotency_key: str | None) -> str:
    """Id of a new job: random, or derived from the caller's idempotency key."""
    return uuid4().hex if idempotency_key is None else keyed_id(caller.id, idempotency_key)


def keyed_id(caller: str, idempotency_key: str) -> str:
    """The job id derived from a caller's idempotency key."""
    return "i-" + hashlib.sha256(json.dumps([caller, idempotency_key]).encode()).hexdigest()


def body_digest(request: JobRequest) -> str:
    """SHA-256 of the given fields of a body, independent of their order and spacing."""
    text = json.dumps(request.model_dump(exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
