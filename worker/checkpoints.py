"""Checkpoints of jobs, written periodically and before a requeue, so that the next worker need not start over.

No result depends on a checkpoint. If one cannot be written it is skipped; if one cannot be used the job starts over.

The loop copies a job's state between two steps. A thread writes the copy to the store, and only then the job's record
names it, so a named checkpoint is in the store. The one it replaces is removed after that.
"""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from engine.engine import Engine
from engine.errors import UnfitStateError
from jobs.contract.errors import UnavailableError
from jobs.contract.job import CheckpointRecord, Progress
from jobs.storage.images import ImageStore
from worker.attempts import Attempt
from worker.auditing import Numerics
from worker.background_calls import BackgroundCalls
from worker.claim import Claim
from worker.job_inputs import JobInputs
from worker.job_plans import JobPlan
from worker.job_state import JobState, UnusableCheckpointError, from_bytes, to_bytes
from worker.queue_thread import QueueThread
from worker.results import Results

log = structlog.get_logger("worker.checkpoints")

MAX_BYTES = 64 << 20  # of one checkpoint
MOST_WAITING_BYTES = 2 * MAX_BYTES  # of copies that wait for the store, in the host's memory
WORTH_SECONDS = 1.0  # a requeued job gets a checkpoint if its own share of the device time is at least this
LOOK_SECONDS = 0.02  # wait for one callback while the last checkpoints are written


class Checkpoints:
    """The checkpoints of one worker. `seconds`: device time of a job between two of them; 0 writes none.

    All methods but `load` are for the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        results: Results,
        queue: QueueThread,
        calls: BackgroundCalls,
        store: ImageStore,
        numerics: Numerics,
        seconds: float,
    ) -> None:
        self._engine, self._results, self._queue, self._calls, self._store = engine, results, queue, calls, store
        self._numerics, self._seconds = numerics, seconds
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._waiting: dict[str, int] = {}  # bytes of the state that is being written, by claim token
        self._unnamed: set[str] = set()  # tokens of claims whose latest checkpoint no record names yet
        self._deleting = 0

    @property
    def is_writing(self) -> bool:
        """Return whether a checkpoint is being written or removed."""
        return bool(self._waiting) or self._deleting > 0

    def write_if_due(self, attempt: Attempt) -> None:
        """Write a checkpoint if the job has had enough device time since its last one; call this between two steps.

        Does nothing until the job's record names the last checkpoint, because only then the one before it is removed,
        and the store must not fill up.
        """
        if self._seconds and _unsaved(attempt) >= self._seconds and attempt.claim.token not in self._unnamed:
            self._write(attempt)

    def write_last(self, attempts: Iterable[Attempt], until: float) -> None:
        """Write a checkpoint of every job that is to be requeued and has enough unsaved work, at any step.

        `until` is a time of the monotonic clock at which the process may be killed, so the jobs with the most unsaved
        work are written first.
        Returns when they are in the store, or at `until`. Records name them before any later write to the queue.
        """
        self._finish_writing(until)
        if not self._seconds:
            return
        least = min(self._seconds, WORTH_SECONDS)
        due = [attempt for attempt in attempts if attempt.device_seconds >= least and _unsaved(attempt)]
        for attempt in sorted(due, key=_unsaved, reverse=True):
            if time.monotonic() < until:
                self._write(attempt)
                self._finish_writing(until)

    def _finish_writing(self, until: float) -> None:
        while self.is_writing and time.monotonic() < until:
            self._calls.run_callbacks(LOOK_SECONDS)

    def _write(self, attempt: Attempt) -> None:
        if attempt.num_unstored or attempt.claim.token in self._waiting:
            return  # an image is neither in the engine nor stored, so no worker could resume from here
        claim = attempt.claim
        state = attempt.state(self._engine.states(claim.job_id))
        size = state.num_bytes
        if size <= MAX_BYTES and size + sum(self._waiting.values()) > MOST_WAITING_BYTES:
            return  # the store is slow; a later step tries again
        attempt.checkpointed_at = attempt.device_seconds  # also if it fails, so that it is not repeated at each step
        if not state.fits(attempt.plan):
            return  # the image failed in a step that is not retired yet: keep the previous checkpoint
        if size > MAX_BYTES:
            log.info("checkpoint_left_out", **claim.ids, bytes=size, limit=MAX_BYTES)
            return
        # all of the same step, because the job continues
        copied, steps, reached = state.copied(), attempt.steps, attempt.progress()
        self._waiting[claim.token] = size
        self._calls.start(
            self._thread,
            lambda: self._store_state(claim, copied),
            lambda outcome: self._stored(attempt, steps, reached, outcome),
        )

    def _store_state(self, claim: Claim, state: JobState) -> tuple[CheckpointRecord, int] | UnavailableError:
        numerics = self._numerics.of(claim.request.model)
        data = to_bytes(state, claim.request, numerics)
        try:
            return self._store.put_checkpoint(claim.job_id, claim.token, numerics, data), len(data)
        except UnavailableError as error:
            return error

    def _stored(
        self, attempt: Attempt, steps: int, reached: Progress, outcome: tuple[CheckpointRecord, int] | UnavailableError
    ) -> None:
        claim = attempt.claim
        del self._waiting[claim.token]
        if isinstance(outcome, UnavailableError):
            log.warning("checkpoint_left_out", **claim.ids, error=str(outcome))
            return
        written, size = outcome
        if written == attempt.checkpoint:
            return
        if attempt.forgotten:
            self._delete(claim.job_id, written)  # the job left this worker meanwhile, so its record must not name this
            return

        def named(is_named: bool) -> None:
            self._unnamed.discard(claim.token)
            if not is_named:
                return  # the claim or Redis was lost; the upkeep removes the checkpoint that no record names
            before, attempt.checkpoint = attempt.checkpoint, written
            log.info("checkpointed", **claim.ids, steps=steps, bytes=size)
            if before is not None:
                self._delete(claim.job_id, before)

        self._unnamed.add(claim.token)
        self._queue.write(partial(self._results.checkpointed, claim, written, reached), named)

    def ended(self, attempt: Attempt) -> None:
        """Remove the checkpoint of a job that this worker has completed or dropped; the upkeep removes all others."""
        if attempt.checkpoint is not None:
            self._delete(attempt.claim.job_id, attempt.checkpoint)

    def _delete(self, job_id: str, checkpoint: CheckpointRecord) -> None:
        def delete() -> None:
            try:
                self._store.delete_checkpoint(job_id, checkpoint)
            except UnavailableError as error:
                log.warning("checkpoint_left_behind", job_id=job_id, error=str(error))  # the upkeep removes it

        def over(_: None) -> None:
            self._deleting -= 1

        self._deleting += 1
        self._calls.start(self._thread, delete, over)

    def enter(self, claim: Claim, plan: JobPlan, prepared: JobInputs) -> JobState | None:
        """Add a job's images to the engine: from its checkpoint, whose state is returned, or from the start.

        Raises: the errors of `Engine.add`, when the job starts from the beginning.
        """
        why, state = prepared.starts_over, prepared.state
        if state is not None:
            try:
                if not state.fits(plan):
                    raise UnusableCheckpointError("the checkpoint does not fit the request")
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
        numerics = self._numerics.of(claim.request.model)
        if checkpoint.numerics != numerics:
            raise UnusableCheckpointError("the checkpoint is of other numerics")
        try:
            data = self._store.get_checkpoint(claim.job_id, checkpoint)
        except FileNotFoundError as error:
            raise UnusableCheckpointError("the checkpoint is gone") from error
        if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
            raise UnusableCheckpointError("the checkpoint is damaged")
        state = from_bytes(data, claim.request, numerics)
        # another attempt may have published its own images instead, and the upkeep may have removed these
        if any(each not in claim.published for each in state.images):
            raise UnusableCheckpointError("an image of the checkpoint is no longer published")
        return state

    def close(self) -> None:
        """Drop waiting checkpoints; return when the running call to the store has ended."""
        self._thread.shutdown(cancel_futures=True)


def _unsaved(attempt: Attempt) -> float:
    return attempt.device_seconds - attempt.checkpointed_at
