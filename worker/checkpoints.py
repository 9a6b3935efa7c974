"""Checkpoints of jobs: written now and then and when they are given back, so that the next worker need not start over.

Nothing depends on one. One that cannot be written is left out; one that cannot be used makes the job start over.
"""

import hashlib
import time
from collections.abc import Iterable

import structlog

from engine.engine import Engine, UnfitStateError
from jobs.errors import UnavailableError
from jobs.images import ImageStore
from jobs.job import CheckpointRecord
from worker.inbox import Claim, Inbox
from worker.job_run import JobRun
from worker.job_state import JobState, UnusableCheckpointError, from_bytes, to_bytes
from worker.plans import JobPlan

log = structlog.get_logger("worker.checkpoints")

MAX_BYTES = 64 << 20  # of one job's
WORTH_SECONDS = 1.0  # of device time, from which a job that is given back gets one: it shares the device with others


class Checkpoints:
    """One worker's; `numerics` are its own, and `seconds` the device time of a job between two, 0 for none at all."""

    def __init__(self, engine: Engine, inbox: Inbox, store: ImageStore, numerics: str, seconds: float) -> None:
        self._engine, self._inbox, self._store = engine, inbox, store
        self._numerics, self._seconds = numerics, seconds

    def write_if_due(self, run: JobRun) -> None:
        """Write one where so much was done since the last that it is worth it; to be called between two steps."""
        if self._seconds and _unsaved(run) >= self._seconds:
            self._write(run)

    def write_last(self, runs: Iterable[JobRun], until: float) -> None:
        """Write one of every job that is given back with some work behind it, wherever it stands.

        Until a time of the monotonic clock, when the process may be killed: so what would be lost most goes first.
        """
        if not self._seconds:
            return
        least = min(self._seconds, WORTH_SECONDS)
        due = [run for run in runs if run.device_seconds >= least and _unsaved(run)]
        for run in sorted(due, key=_unsaved, reverse=True):
            if time.monotonic() < until:
                self._write(run)

    def _write(self, run: JobRun) -> None:
        if run.in_hand:
            return  # these images are neither in the engine nor stored: nobody could go on from here
        claim, run.checkpointed_at = run.claim, run.device_seconds  # also where it fails: not at each step again
        state = run.state(self._engine.states(claim.job_id))
        if not state.fits(run.plan):
            return  # it has failed in a step that is not told of yet: what was written before is better
        if state.num_bytes > MAX_BYTES:
            log.info("checkpoint_left_out", job_id=claim.job_id, bytes=state.num_bytes, limit=MAX_BYTES)
            return
        data = to_bytes(state, claim.request, self._numerics)
        try:
            written = self._store.put_checkpoint(claim.job_id, claim.token, self._numerics, data)
        except UnavailableError as error:
            log.warning("checkpoint_left_out", job_id=claim.job_id, error=str(error))
            return
        if self._inbox.checkpointed(claim, written):
            before, run.checkpoint = run.checkpoint, written
            log.info("checkpointed", job_id=claim.job_id, steps=run.steps, bytes=len(data))
            if before is not None and before != written:
                self._delete(claim.job_id, before)

    def ended(self, run: JobRun) -> None:
        """Remove the checkpoint of a job that this worker has completed or dropped; others' are left to the sweep."""
        if run.checkpoint is not None:
            self._delete(run.claim.job_id, run.checkpoint)

    def _delete(self, job_id: str, checkpoint: CheckpointRecord) -> None:
        try:
            self._store.delete_checkpoint(job_id, checkpoint)
        except UnavailableError as error:
            log.warning("checkpoint_left_behind", job_id=job_id, error=str(error))  # to the sweep

    def enter(self, claim: Claim, plan: JobPlan) -> JobState | None:
        """Let a job's images into the engine: from where its last attempt stood, which is returned, or from the start.

        Raises: what `Engine.add` does for the start.
        """
        if claim.checkpoint is not None:
            try:
                state = self._load(claim, claim.checkpoint, plan)
                requests = {each.index: each for each in (*plan.images, *plan.frames)}
                for index, image in state.in_flight.items():
                    self._engine.add(requests[index], image)
            except (UnusableCheckpointError, UnfitStateError, UnavailableError) as error:
                log.warning("starts_over", job_id=claim.job_id, why=str(error))
                self._engine.abort(claim.job_id)
            else:
                log.info("resumed", job_id=claim.job_id, steps=sum(state.steps_done.values()))
                return state
        for each in plan.images:
            self._engine.add(each)
        return None

    def _load(self, claim: Claim, checkpoint: CheckpointRecord, plan: JobPlan) -> JobState:
        if checkpoint.numerics != self._numerics:
            raise UnusableCheckpointError("the checkpoint is of other numerics")
        try:
            data = self._store.get_checkpoint(claim.job_id, checkpoint)
        except FileNotFoundError as error:
            raise UnusableCheckpointError("the checkpoint is gone") from error
        if hashlib.sha256(data).hexdigest() != checkpoint.sha256:
            raise UnusableCheckpointError("the checkpoint is damaged")
        state = from_bytes(data, claim.request, self._numerics)
        # another attempt may have published its own in their place, and the sweep removed these
        if any(each not in claim.published for each in state.images):
            raise UnusableCheckpointError("an image of the checkpoint is no longer published")
        if not state.fits(plan):
            raise UnusableCheckpointError("the checkpoint does not fit what the job asks")
        return state


def _unsaved(run: JobRun) -> float:
    return run.device_seconds - run.checkpointed_at
