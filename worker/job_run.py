"""One claimed job while its images are in the engine."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine.inversion import reconstruction_error
from engine.steps import Finished
from engine.trajectory import FromPicture, ImageRequest, ImageState, Trajectory
from jobs.contract.job import ImageRecord, Progress, Usage
from worker.inbox import Claim
from worker.job_state import JobState
from worker.plans import JobPlan

PREVIEW_SECONDS = 0.05  # between two previews of one image: what an eye can follow


class JobRun:
    """What a job has so far: steps taken, device time, latents, and the images that are stored.

    Of all its attempts as far as this one goes on from them: what its images cost, not what was lost on the way.
    """

    def __init__(self, claim: Claim, plan: JobPlan, resumed: JobState | None = None) -> None:
        self.claim = claim
        self.images: list[ImageRecord] = []
        self.device_seconds = 0.0
        self.checkpoint = claim.checkpoint
        self.checkpointed_at = 0.0  # in device_seconds
        self.in_hand = 0  # images that have left the engine and are not stored yet
        self.forgotten = False  # its worker works on it no longer, however this came
        self.plan = plan
        self._latents: dict[int, Tensor] = {}
        self._errors: dict[int, dict[str, float | None]] = {}
        self._frames = {image.index for image in plan.frames}
        images = [*plan.images, *plan.frames]
        self._steps_total = sum(image.num_evaluations for image in images)
        self._steps_done = {image.index: 0 for image in images}
        self._shown_at: dict[int, float] = {}
        self._behind: dict[int, tuple[str, int, int]] = {}  # image -> stage, step and steps
        if resumed is not None:
            self.images += resumed.images
            self.device_seconds = self.checkpointed_at = resumed.device_seconds
            self._errors |= resumed.errors
            self._latents |= resumed.latents
            self._steps_done |= resumed.steps_done

    def state(self, in_flight: Mapping[int, ImageState]) -> JobState:
        """All that another worker needs to go on, given where the images in the engine stand."""
        return JobState(
            images=list(self.images),
            errors=dict(self._errors),
            steps_done=dict(self._steps_done),
            device_seconds=self.device_seconds,
            latents={} if in_flight.keys() & self._frames else dict(self._latents),
            in_flight=in_flight,
        )

    def moved(self, trajectory: Trajectory, stage: str, seconds: float) -> None:
        """Note that an image took a step of a stage, at a cost of so much device time."""
        index = trajectory.request.index
        self._steps_done[index] += 1
        for encoded in self._latents.keys() - {index}:
            self._behind.pop(encoded, None)  # it has arrived; the frames tell from here on where the job stands
        self.device_seconds += seconds
        # From the count of steps: the engine may have moved the trajectory on to the next stage already.
        step = self._steps_done[index]
        for plan in trajectory.request.plans:
            if step <= plan.num_evaluations:
                self._behind[index] = (stage, step, plan.num_evaluations)
                return
            step -= plan.num_evaluations
        raise AssertionError("an image took more steps than its plans have")

    def place(self, index: int) -> tuple[int, int]:
        """The step that an image took last, and how many its stage has; the job's other images may be elsewhere."""
        _, step, steps = self._behind[index]
        return step, steps

    def shows_previews(self, index: int, now: float) -> bool:
        """Whether a preview of the image is due; on a fast device most steps go unseen, or they would slow it down."""
        if now - self._shown_at.get(index, float("-inf")) < PREVIEW_SECONDS:
            return False
        self._shown_at[index] = now
        return True

    def progress(self) -> Progress:
        """Where the image that is furthest behind stands, and the share of all steps that are done."""
        last = min(self._behind, key=lambda index: self._steps_done[index])
        stage, step, steps = self._behind[last]
        return Progress(stage=stage, step=step, steps=steps, fraction=self.steps / self._steps_total)

    def encoded(self, finished: Finished) -> list[ImageRequest]:
        """Note the latent of an encoding; what enters the engine when it was the last."""
        self._latents[finished.request.index] = finished.x
        if len(self._latents) < len(self.plan.images):
            return []
        return self.plan.frames_between(*(self._latents[each.index] for each in self.plan.images))

    def left(self, finished: Finished) -> None:
        """Note an image that has left the engine and is to be stored."""
        self.in_hand += 1
        if self.claim.request.kind == "reconstruct":
            assert isinstance(finished.request.start, FromPicture)
            error = reconstruction_error(finished.pixels, finished.request.start.pixels)
            self._errors[finished.request.index] = error

    def stored(self, image: ImageRecord) -> bool:
        """Note a stored image; True when it was the last."""
        self.in_hand -= 1
        self.images.append(image)
        return len(self.images) == self.claim.request.num_images

    @property
    def results(self) -> dict[str, Any] | None:
        """What the job found that is not an image."""
        return {"errors": [self._errors[index] for index in sorted(self._errors)]} if self._errors else None

    @property
    def steps(self) -> int:
        """Steps of the engine, each an evaluation of the network, summed over images and stages."""
        return sum(self._steps_done.values())

    @property
    def is_computed(self) -> bool:
        """Whether all its steps are taken, and only the store is waited for."""
        return self.steps == self._steps_total

    @property
    def usage(self) -> Usage:
        return Usage(steps=self.steps, device_seconds=round(self.device_seconds, 4))
