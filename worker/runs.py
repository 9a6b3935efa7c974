"""The jobs in a worker's engine, and how each of them leaves: completed, failed, cancelled or given back."""

import time
from collections.abc import Collection
from functools import partial
from typing import Any

import structlog
import torch

from engine.engine import Engine
from engine.steps import NotFiniteError
from jobs.contract.errors import FailureKind
from jobs.contract.job import ImageRecord, Usage
from worker.auditing import Numerics
from worker.checkpoints import Checkpoints
from worker.inbox import Inbox
from worker.job_run import JobRun
from worker.queue_thread import QueueThread
from worker.taking import Claim

log = structlog.get_logger("worker.runs")

PAUSE_SECONDS = 5.0  # without taking jobs, after the store or the device's memory failed one


class Runs:
    """One worker's jobs in flight, by id. All methods are for the loop's thread."""

    def __init__(
        self, engine: Engine, inbox: Inbox, queue: QueueThread, checkpoints: Checkpoints, numerics: Numerics
    ) -> None:
        self._engine, self._inbox, self._queue, self._checkpoints = engine, inbox, queue, checkpoints
        self._numerics = numerics
        self._runs: dict[str, JobRun] = {}
        self._takes_nothing_until = 0.0

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def all(self) -> Collection[JobRun]:
        """In the order in which they came."""
        return self._runs.values()

    @property
    def may_take_more(self) -> bool:
        """Whether jobs may be claimed, as far as the store and the device's memory are concerned."""
        return time.monotonic() >= self._takes_nothing_until

    def of(self, job_id: str) -> JobRun | None:
        return self._runs.get(job_id)

    def has(self, run: JobRun) -> bool:
        """Whether this very run of its job is in flight."""
        return self._runs.get(run.claim.job_id) is run

    def add(self, run: JobRun) -> None:
        self._runs[run.claim.job_id] = run

    def forget(self, run: JobRun) -> None:
        """Take a job's images out of the engine."""
        del self._runs[run.claim.job_id]
        run.forgotten = True
        self._engine.abort(run.claim.job_id)

    def stored(self, run: JobRun, image: ImageRecord) -> None:
        """Publish a stored image; the last one completes its job."""
        if run.stored(image):
            self.complete(run, sorted(run.images, key=lambda i: i.index), run.usage, run.results)
            return

        def published(is_published: bool) -> None:
            if not is_published and self.has(run):  # the claim was lost
                self.forget(run)

        self._queue.write(partial(self._inbox.image_ready, run.claim, image), published)

    def complete(self, run: JobRun, images: list[ImageRecord], usage: Usage, results: dict[str, Any] | None) -> None:
        """Complete a job: its result is written once Redis takes it, while others go on."""
        self.forget(run)
        call = partial(self._inbox.complete, run.claim, images, usage, self._numerics.now, results)
        self._queue.write(call, partial(self._ended, run))

    def put_back(self, claim: Claim, error: Exception) -> None:
        """Give a job back at no cost to it; the store or the device's memory is at fault, and the job starts over."""
        what = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "store_away"
        log.error(what, **claim.ids, error=str(error))
        self._takes_nothing_until = time.monotonic() + PAUSE_SECONDS
        if run := self._runs.get(claim.job_id):
            self.forget(run)
        self.give_back(claim)

    def blame(self, job_id: str, error: Exception, detail: str) -> None:
        """Give a job that failed in the engine back where memory ran out; else fail it, or spend one of its retries."""
        run = self._runs[job_id]
        if isinstance(error, torch.OutOfMemoryError):
            self.put_back(run.claim, error)
            return
        log.error("step_failed", job_id=job_id, error=f"{type(error).__name__}: {error}")
        # The same numbers would overflow again: only what may pass by itself is worth another try.
        self.fail(run, FailureKind.STEP_FAILED, detail, retry=not isinstance(error, NotFiniteError))

    def fail(self, run: JobRun, kind: FailureKind, detail: str, *, retry: bool) -> None:
        self.forget(run)
        self.fail_claim(run.claim, kind, detail, retry=retry)

    def fail_claim(self, claim: Claim, kind: FailureKind, detail: str, *, retry: bool) -> None:
        """Fail a job that never entered the engine."""
        self._queue.write(partial(self._inbox.fail, claim, kind, detail, retry=retry))

    def drop(self, run: JobRun) -> None:
        """Take a job out of the batch that was cancelled, or that another worker holds by now."""
        self.forget(run)
        self._queue.write(partial(self._inbox.cancelled, run.claim), partial(self._ended, run))

    def cancelled(self, claim: Claim) -> None:
        """Let go of a job that never entered the engine, for the same reasons."""
        self._queue.write(partial(self._inbox.cancelled, claim))

    def give_back(self, claim: Claim) -> None:
        """Put a job back to the front of its queue."""
        self._queue.write(partial(self._inbox.give_back, claim))

    def give_back_all(self) -> None:
        """Let others go on with what is here."""
        for run in reversed(list(self._runs.values())):  # each to the front: the first is to be the first again
            self.forget(run)
            self.give_back(run.claim)

    def _ended(self, run: JobRun, by_us: bool) -> None:
        if by_us:  # refused where the claim was lost
            self._checkpoints.ended(run)
