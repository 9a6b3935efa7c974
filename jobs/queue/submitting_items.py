"""How a call with `items` becomes queued jobs: all of them, or none."""

import json
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from jobs.callers.caller import Caller
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.items import JobItems
from jobs.queue.idempotency import MISMATCH, body_digest, job_id_of
from jobs.queue.record import Record
from jobs.queue.submitting import Draft, Order, Submission, Submitted, Submitter

RETRY_SECONDS = 1.0  # by then a job that is being removed is gone


class ItemsSubmission(NamedTuple):
    """A call for several jobs; with a key, the same key and body of a caller give the same jobs."""

    items: JobItems
    caller: Caller
    idempotency_key: str | None = None
    request_id: str = ""
    traceparent: str = ""  # of its trace, which the workers continue


class ItemsSubmitter(Submitter):
    """Queues the jobs of calls with items, and those of calls for one."""

    def submit_items(self, submission: ItemsSubmission) -> list[Submitted]:
        """Queue the jobs of one call, all of them or, where it raises, none. Each costs its caller what a job does.

        The key's id is the first job's, which names the others: so the key stands for them until that job is removed.
        Raises: RefusedError.
        """
        caller, key = submission.caller, submission.idempotency_key
        self._quotas.take_post(caller, len(submission.items.items))
        digest, first_id = body_digest(submission.items), job_id_of(caller, key)
        if key is not None and (present := self._ledger.read(first_id)) is not None:
            return self._replay_items(present, digest)
        orders = self._orders(submission, first_id, digest)
        drafts = self._drafts(orders)
        self._quotas.take_cost(caller, sum(each.record.cost_ms for each in drafts))
        records = [each.record for each in drafts]
        if key is not None:
            ids = json.dumps([each.id for each in records])
            records[0] = Record(first_id, records[0].fields | {b"adm_items": ids.encode()})
        if (places := self._ledger.enqueue(records)) is None:  # another call of the same key came first
            if (present := self._ledger.read(first_id)) is not None:
                return self._replay_items(present, digest)
            detail = "the jobs of this Idempotency-Key are being removed, or its place is taken by what is no job"
            raise RefusedError(ErrorKind.UNAVAILABLE, detail, retry_after_seconds=RETRY_SECONDS)
        return [Submitted(self._view(draft, place), False) for draft, place in zip(drafts, places, strict=True)]

    def _orders(self, submission: ItemsSubmission, first_id: str, digest: str) -> list[Order]:
        """An order for each item. Raises: InvalidRequestError, with the wrong fields of all of them."""
        orders, wrong = list[Order](), list[FieldError]()
        for place, request in enumerate(submission.items.requests):
            item = Submission(request, submission.caller, None, submission.request_id, submission.traceparent)
            try:
                orders.append(self._order(uuid4().hex if place else first_id, item, digest))
            except InvalidRequestError as error:
                wrong += within_item(place, error)
        if wrong:
            raise InvalidRequestError(wrong)
        return orders

    def _drafts(self, orders: Sequence[Order]) -> list[Draft]:
        """Drafts of the jobs of one call. Raises: RefusedError where there is no room for all of them."""
        counted, drafts = self._count(orders), list[Draft]()
        for place, order in enumerate(orders):
            try:
                draft = self._draft(order, counted)
            except InvalidRequestError as error:
                raise InvalidRequestError(within_item(place, error)) from error
            counted.add(order, draft)
            drafts.append(draft)
        return drafts

    def _replay_items(self, first: Record, digest: str) -> list[Submitted]:
        """The jobs of a call that are still kept."""
        if first.text("adm_body") != digest:
            raise RefusedError(ErrorKind.IDEMPOTENCY_MISMATCH, MISMATCH)
        kept = [record for each in first.item_ids if (record := self._ledger.read(each)) is not None]
        return [Submitted(job, True) for job in self._views.of(kept)]


def within_item(place: int, error: InvalidRequestError) -> list[FieldError]:
    """The wrong fields of one item, as its call has them."""
    return [FieldError(f"/items/{place}{each.pointer}", each.detail) for each in error.errors]
