"""Checkpoints of jobs: written now and then and when they are given back, so that the next worker need not start over.

Nothing depends on one. One that cannot be written is left out; one that cannot be used makes the job start over.

The loop takes a copy of a job's state between two steps. A thread writes it to the store, and only then the job's
record names it: what is named is there. The one it replaces is removed after that.
"""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from engine.engine import Engine, UnfitStateError
from jobs.contract.errors import UnavailableError
from jobs.contract.job import CheckpointRecord, Progress
from jobs.storage.images import ImageStore
from worker.auditing import Numerics
from worker.errands import Errands
from worker.inbox import Claim, Inbox
from worker.job_run import JobRun
from worker.job_state import JobState, UnusableCheckpointError, from_bytes, to_bytes
from worker.plans import JobPlan
from worker.preparing import Prepared
from worker.queue_thread import QueueThread

log = structlog.get_logger("worker.checkpoints")

MAX_BYTES = 64 << 20  # of one job's
MOST_WAITING_BYTES = 2 * MAX_BYTES  # of those that wait for the store, the host's memory being what they take
WORTH_SECONDS = 1.0  # of device time, from which a job that is given back gets one: it shares the device with others
LOOK_SECONDS = 0.02  # while the last ones are written


class Checkpoints:
    """One worker's; `numerics` are its own, and `seconds` the device time of a job between two, 0 for none at all.

    All methods but `load` are for the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: Inbox,
        queue: QueueThread,
        errands: Errands,
        store: ImageStore,
        numerics: Numerics,
        seconds: float,
    ) -> None:
        self._engine, self._inbox, self._queue, self._errands, self._store = engine, inbox, queue, errands, store
        self._numerics, self._seconds = numerics, seconds
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._waiting: dict[str, int] = {}  # bytes of the state that is being written, by claim
        self._deleting = 0

    @property
    def is_writing(self) -> bool:
        """Whether the store is being written to."""
        return bool(self._waiting) or self._deleting > 0

    def write_if_due(self, run: JobRun) -> None:
        """Write one where so much was done since the last that it is worth it; to be called between two steps."""
        if self._seconds and _unsaved(run) >= self._seconds:
            self._write(run)

    def write_last(self, runs: Iterable[JobRun], until: float) -> None:
        """Write one of every job that is given back with some work behind it, wherever it stands.

        Until a time of the monotonic clock, when the process may be killed: so what would be lost most goes first.
        Returns when they are in the store and will be named before anything that is written to the queue from here on.
        """
        self._finish_writing(until)
        if not self._seconds:
            return
        least = min(self._seconds, WORTH_SECONDS)
        due = [run for run in runs if run.device_seconds >= least and _unsaved(run)]
        for run in sorted(due, key=_unsaved, reverse=True):
            if time.monotonic() < until:
                self._write(run)
                self._finish_writing(until)

    def _finish_writing(self, until: float) -> None:
        while self.is_writing and time.monotonic() < until:
            self._errands.settle(LOOK_SECONDS)

    def _write(self, run: JobRun) -> None:
        if run.in_hand or run.claim.token in self._waiting:
            return  # images that are neither in the engine nor stored: nobody could go on from here
        claim = run.claim
        state = run.state(self._engine.states(claim.job_id))
        size = state.num_bytes
        if size <= MAX_BYTES and size + sum(self._waiting.values()) > MOST_WAITING_BYTES:
            return  # the store is slow; a later step tries again
        run.checkpointed_at = run.device_seconds  # also where it fails: not at each step again
        if not state.fits(run.plan):
            return  # it has failed in a step that is not told of yet: what was written before is better
        if size > MAX_BYTES:
            log.info("checkpoint_left_out", **claim.ids, bytes=size, limit=MAX_BYTES)
            return
        copied, steps, reached = state.copied(), run.steps, run.progress()  # of one moment: the job moves on meanwhile
        self._waiting[claim.token] = size
        self._errands.start(
            self._thread,
            lambda: self._store_state(claim, copied),
            lambda outcome: self._stored(run, steps, reached, outcome),
        )

    def _store_state(self, claim: Claim, state: JobState) -> tuple[CheckpointRecord, int] | UnavailableError:
        data = to_bytes(state, claim.request, self._numerics.now)
        try:
            return self._store.put_checkpoint(claim.job_id, claim.token, self._numerics.now, data), len(data)
        except UnavailableError as error:
            return error

    def _stored(
        self, run: JobRun, steps: int, reached: Progress, outcome: tuple[CheckpointRecord, int] | UnavailableError
    ) -> None:
        claim = run.claim
        del self._waiting[claim.token]
        if isinstance(outcome, UnavailableError):
            log.warning("checkpoint_left_out", **claim.ids, error=str(outcome))
            return
        written, size = outcome
        if written == run.checkpoint:
            return
        if run.forgotten:
            self._delete(claim.job_id, written)  # its job went another way meanwhile, and nobody is to be told of it
            return

        def named(is_named: bool) -> None:
            if not is_named:
                return  # the claim was lost, or Redis: the sweep knows which of the two lies there for nothing
            before, run.checkpoint = run.checkpoint, written
            log.info("checkpointed", **claim.ids, steps=steps, bytes=size)
            if before is not None:
                self._delete(claim.job_id, before)

        self._queue.write(partial(self._inbox.checkpointed, claim, written, reached), named)

    def ended(self, run: JobRun) -> None:
        """Remove the checkpoint of a job that this worker has completed or dropped; others' are left to the sweep."""
        if run.checkpoint is not None:
            self._delete(run.claim.job_id, run.checkpoint)

    def _delete(self, job_id: str, checkpoint: CheckpointRecord) -> None:
        def delete() -> None:
            try:
                self._store.delete_checkpoint(job_id, checkpoint)
            except UnavailableError as error:
                log.warning("checkpoint_left_behind", job_id=job_id, error=str(error))  # to the sweep

        def over(_: None) -> None:
            self._deleting -= 1

        self._deleting += 1
        self._errands.start(self._thread, delete, over)

    def enter(self, claim: Claim, plan: JobPlan, prepared: Prepared) -> JobState | None:
        """Let a job's images into the engine: from where its last attempt stood, which is returned, or from the start.

        Raises: what `Engine.add` does for the start.
        """
        why, state = prepared.starts_over, prepared.state
        if state is not None:
            try:
                if not state.fits(plan):
                    raise UnusableCheckpointError("the checkpoint does not fit what the job asks")
                requests = {each.index: each for each in (*plan.images, *plan.frames)}
                for index, image in state.in_flight.items():
                    self._engine.add(requests[index], image)
            except (UnusableCheckpointError, UnfitStateError) as error:
                why = str(error)
                self._engine.abort(claim.job_id)
            else:
                log.info("resumed", **claim.ids, steps=sum(state.steps_done.values()))
                return state
        if why:
            log.warning("starts_over", **claim.ids, why=why)
        for each in plan.images:
            self._engine.add(each)
        return None

    def load(self, claim: Claim, checkpoint: CheckpointRecord) -> JobState:
        """The state in a checkpoint. For any thread. Raises: UnusableCheckpointError, UnavailableError."""
        if checkpoint.numerics != self._numerics.now:
            raise UnusableCheckpointError("the checkpoint is of other numerics")
        try:
            data = self._store.get_checkpoint(claim.job_id, checkpoint)
        except FileNotFoundError as error:
            raise UnusableCheckpointError("the checkpoint is gone") from error
        if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
            raise UnusableCheckpointError("the checkpoint is damaged")
        state = from_bytes(data, claim.request, self._numerics.now)
        # another attempt may have published its own in their place, and the sweep removed these
        if any(each not in claim.published for each in state.images):
            raise UnusableCheckpointError("an image of the checkpoint is no longer published")
        return state

    def close(self) -> None:
        """Drop what waits; returns when the store has answered a call that it is at."""
        self._thread.shutdown(cancel_futures=True)


def _unsaved(run: JobRun) -> float:
    return run.device_seconds - run.checkpointed_at
