"""A worker's attempts at the jobs whose images are in the engine: the progress of each, and its end."""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import structlog
import torch
from torch import Tensor

from engine.engine import Engine
from engine.errors import NotFiniteError
from engine.inversion import reconstruction_error
from engine.steps import Finished
from engine.trajectory import FromPicture, ImageRequest, ImageState, Trajectory
from jobs.contract.errors import FailureKind
from jobs.contract.job import ImageRecord, Progress, Usage
from worker.auditing import Numerics
from worker.claim import Claim
from worker.job_plans import JobPlan
from worker.job_state import JobState
from worker.queue_thread import QueueThread
from worker.results import Results

log = structlog.get_logger("worker.attempts")

PREVIEW_SECONDS = 0.05  # between two previews of one image; an eye cannot follow more
PAUSE_SECONDS = 5.0  # without claiming jobs, after an error of the store or the device's memory


class Attempt:
    """An attempt at a job, as far as it got: steps taken, device time, latents and stored images.

    Includes earlier attempts as far as this attempt resumed their checkpoint; work that was lost is not counted.
    """

    def __init__(self, claim: Claim, plan: JobPlan, resumed: JobState | None = None) -> None:
        self.claim = claim
        self.images: list[ImageRecord] = []
        self.device_seconds = 0.0
        self.checkpoint = claim.checkpoint
        self.checkpointed_at = 0.0  # in device_seconds
        self.num_unstored = 0  # images that have left the engine and are not stored yet
        self.forgotten = False  # the job has left this worker, for any reason
        self.plan = plan
        self._latents: dict[int, Tensor] = {}
        self._errors: dict[int, dict[str, float | None]] = {}
        self._frames = {image.index for image in plan.frames}
        images = [*plan.images, *plan.frames]
        self._steps_total = sum(image.num_evaluations for image in images)
        self._steps_done = {image.index: 0 for image in images}
        self._shown_at: dict[int, float] = {}
        self._reached: dict[int, tuple[str, int, int]] = {}  # image -> stage, step and steps
        if resumed is not None:
            self.images += resumed.images
            self.device_seconds = self.checkpointed_at = resumed.device_seconds
            self._errors |= resumed.errors
            self._latents |= resumed.latents
            self._steps_done |= resumed.steps_done

    def state(self, in_flight: Mapping[int, ImageState]) -> JobState:
        """All that another worker needs to resume; in_flight: the states of the images in the engine, by index."""
        return JobState(
            images=list(self.images),
            errors=dict(self._errors),
            steps_done=dict(self._steps_done),
            device_seconds=self.device_seconds,
            latents={} if in_flight.keys() & self._frames else dict(self._latents),
            in_flight=in_flight,
        )

    def moved(self, trajectory: Trajectory, stage: str, seconds: float) -> None:
        """Note that an image took a step of a stage; seconds: its share of the device time."""
        index = trajectory.request.index
        self._steps_done[index] += 1
        for encoded in self._latents.keys() - {index}:
            self._reached.pop(encoded, None)  # it is encoded; from here on the frames show the job's progress
        self.device_seconds += seconds
        # From the count of steps: the engine may have moved the trajectory on to the next stage already.
        step = self._steps_done[index]
        for plan in trajectory.request.plans:
            if step <= plan.num_evaluations:
                self._reached[index] = (stage, step, plan.num_evaluations)
                return
            step -= plan.num_evaluations
        raise AssertionError("an image took more steps than its plans have")

    def reached(self, index: int) -> tuple[int, int]:
        """The last step that an image took, and the number of steps of its stage."""
        _, step, steps = self._reached[index]
        return step, steps

    def shows_previews(self, index: int, now: float) -> bool:
        """Return whether a preview of the image is due; a preview of each step would slow a fast device."""
        if now - self._shown_at.get(index, float("-inf")) < PREVIEW_SECONDS:
            return False
        self._shown_at[index] = now
        return True

    def progress(self) -> Progress:
        """The stage and step of the image with the fewest steps done, and the done share of all steps."""
        last = min(self._reached, key=lambda index: self._steps_done[index])
        stage, step, steps = self._reached[last]
        return Progress(stage=stage, step=step, steps=steps, fraction=self.steps / self._steps_total)

    def encoded(self, finished: Finished) -> list[ImageRequest]:
        """Note the latent of an encoding; after the last one, return the frames that enter the engine."""
        self._latents[finished.request.index] = finished.x
        if len(self._latents) < len(self.plan.images):
            return []
        return self.plan.frames_between(*(self._latents[each.index] for each in self.plan.images))

    def left(self, finished: Finished) -> None:
        """Note an image that has left the engine and will be stored."""
        self.num_unstored += 1
        if self.claim.request.kind == "reconstruct":
            assert isinstance(finished.request.start, FromPicture)
            error = reconstruction_error(finished.pixels, finished.request.start.pixels)
            self._errors[finished.request.index] = error

    def stored(self, image: ImageRecord) -> bool:
        """Note a stored image; return True if it was the last."""
        self.num_unstored -= 1
        self.images.append(image)
        return len(self.images) == self.claim.request.num_images

    @property
    def results(self) -> dict[str, Any] | None:
        """The results that are not images: reconstruction errors; None if there are none."""
        return {"errors": [self._errors[index] for index in sorted(self._errors)]} if self._errors else None

    @property
    def steps(self) -> int:
        """Steps of the engine, each an evaluation of the network, summed over images and stages."""
        return sum(self._steps_done.values())

    @property
    def is_computed(self) -> bool:
        """Return whether all steps are taken, so that only storing remains."""
        return self.steps == self._steps_total

    @property
    def usage(self) -> Usage:
        return Usage(steps=self.steps, device_seconds=round(self.device_seconds, 4))


class Attempts:
    """One worker's attempts, by job. All methods are for the loop's thread."""

    def __init__(
        self,
        engine: Engine,
        results: Results,
        queue: QueueThread,
        numerics: Numerics,
        ended: Callable[[Attempt], None],
    ) -> None:
        """`ended` gets each attempt whose end this worker has written."""
        self._engine, self._results, self._queue, self._numerics = engine, results, queue, numerics
        self._on_end = ended
        self._attempts: dict[str, Attempt] = {}
        self._takes_nothing_until = 0.0

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def all(self) -> Collection[Attempt]:
        """All attempts, in the order of their entry."""
        return self._attempts.values()

    @property
    def may_take_more(self) -> bool:
        """Return whether jobs may be claimed; False for PAUSE_SECONDS after an error of the store or device memory."""
        return time.monotonic() >= self._takes_nothing_until

    def of(self, job_id: str) -> Attempt | None:
        return self._attempts.get(job_id)

    def has(self, attempt: Attempt) -> bool:
        """Return whether this attempt, and not a later one at its job, is in flight."""
        return self._attempts.get(attempt.claim.job_id) is attempt

    def add(self, attempt: Attempt) -> None:
        self._attempts[attempt.claim.job_id] = attempt

    def forget(self, attempt: Attempt) -> None:
        """Remove an attempt and its images in the engine."""
        del self._attempts[attempt.claim.job_id]
        attempt.forgotten = True
        self._engine.abort(attempt.claim.job_id)

    def stored(self, attempt: Attempt, image: ImageRecord) -> None:
        """Publish a stored image; the last one completes its job."""
        if attempt.stored(image):
            self.complete(attempt, sorted(attempt.images, key=lambda i: i.index), attempt.usage, attempt.results)
            return

        def published(is_published: bool) -> None:
            if not is_published and self.has(attempt):  # the claim was lost
                self.forget(attempt)

        self._queue.write(partial(self._results.image_ready, attempt.claim, image), published)

    def complete(
        self, attempt: Attempt, images: list[ImageRecord], usage: Usage, results: dict[str, Any] | None
    ) -> None:
        """Complete a job; its result is written on the queue's thread, while other jobs continue."""
        self.forget(attempt)
        claim = attempt.claim
        numerics = self._numerics.of(claim.request.model)
        call = partial(self._results.complete, claim, images, usage, numerics, results)
        self._queue.write(call, partial(self._ended, attempt))

    def requeue_after_outage(self, claim: Claim, error: Exception) -> None:
        """Requeue a job without spending a retry, after an error of the store or the device's memory."""
        what = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "store_unavailable"
        log.error(what, **claim.ids, error=str(error))
        self._takes_nothing_until = time.monotonic() + PAUSE_SECONDS
        if attempt := self._attempts.get(claim.job_id):
            self.forget(attempt)
        self.requeue(claim)

    def blame(self, job_id: str, error: Exception, detail: str) -> None:
        """Requeue a job if the engine ran out of memory; otherwise spend one of its retries, or fail it."""
        attempt = self._attempts[job_id]
        if isinstance(error, torch.OutOfMemoryError):
            self.requeue_after_outage(attempt.claim, error)
            return
        log.error("step_failed", job_id=job_id, error=f"{type(error).__name__}: {error}")
        # Numbers that overflow would overflow again, so only other errors are worth a retry.
        self.fail(attempt, FailureKind.STEP_FAILED, detail, retry=not isinstance(error, NotFiniteError))

    def fail(self, attempt: Attempt, kind: FailureKind, detail: str, *, retry: bool) -> None:
        self.forget(attempt)
        self.fail_claim(attempt.claim, kind, detail, retry=retry)

    def fail_claim(self, claim: Claim, kind: FailureKind, detail: str, *, retry: bool) -> None:
        """Fail a job that is not in the engine."""
        self._queue.write(partial(self._results.fail, claim, kind, detail, retry=retry))

    def drop(self, attempt: Attempt) -> None:
        """Remove a job that was cancelled or that another worker has claimed."""
        self.forget(attempt)
        self._queue.write(partial(self._results.cancelled, attempt.claim), partial(self._ended, attempt))

    def cancelled(self, claim: Claim) -> None:
        """Release a job that never entered the engine, for the same reasons as `drop`."""
        self._queue.write(partial(self._results.cancelled, claim))

    def requeue(self, claim: Claim) -> None:
        """Put a job back to the front of its queue."""
        self._queue.write(partial(self._results.requeue, claim))

    def requeue_all(self) -> None:
        """Requeue all jobs in flight."""
        for attempt in reversed(list(self._attempts.values())):  # each goes to the front, so this keeps the order
            self.forget(attempt)
            self.requeue(attempt.claim)

    def _ended(self, attempt: Attempt, by_us: bool) -> None:
        if by_us:  # False if the claim was lost
            self._on_end(attempt)
