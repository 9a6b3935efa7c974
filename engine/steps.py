"""A step of the engine, from when a device is given it until it is told of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from engine.laps import Lap
from engine.trajectory import ImageRequest, Trajectory


class NotFiniteError(Exception):
    """An image's state has overflowed: a picture of it would be noise or black, and nobody would know."""


@dataclass(frozen=True)
class Finished:
    """An image that has passed its last stage: x [3, H, W] as it left it, and its pixels, uint8, on the host."""

    request: ImageRequest
    x: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Passed:
    """An image that came to a stage's end, and whether its state [3, H, W] is finite: [], on the host.

    finished is None where another stage follows.
    """

    trajectory: Trajectory
    is_finite: Tensor
    finished: Finished | None


@dataclass(frozen=True)
class StepReport:
    """What a step did: its stage, the images that moved, as they stood after it and, in the same order, before it, and
    the shape they were padded to.

    seconds is what it took the device, for num_rows of images: of those, too, that were aborted before this was told.
    It is no measure of such steps unless the batch is_whole: computed at once, without a failure.
    previews has what images are going to be, [3, H, W], uint8, on the host, by their keys, as far as it was asked for.
    failed has the jobs that cannot be computed, and why; all their images have left the engine. Where the device's
    memory did not suffice, lowered has the row shapes that are left to the parts of the stage, network or guide, that
    take smaller batches from here on; torch.OutOfMemoryError in failed says that not even the smallest could be
    computed, which is no job's fault.
    """

    stage: str
    moved: list[Trajectory]
    row_shape: int
    num_rows: int
    is_whole: bool
    previews: Mapping[tuple[str, int], Tensor]
    lowered: Mapping[str, tuple[int, ...]]
    seconds: float = 0.0
    finished: list[Finished] = field(default_factory=list)
    failed: Mapping[str, Exception] = field(default_factory=dict)
    before: Sequence[Trajectory] = ()


@dataclass
class Begun:
    """A step that a device was given. What is on the host of it may be read when its lap is over.

    known is its report, but for what is known when it is told of: seconds, finished, and who turned out to have failed.
    before has the images that moved as they stood before it: for whoever asks, it is not taken until it is told of.
    """

    known: StepReport
    expected_seconds: float
    lap: Lap
    before: list[Trajectory]
    passed: list[Passed] = field(default_factory=list)

    def drop(self, job_id: str) -> None:
        """Tell nothing of a job."""
        known = self.known
        self.before = _of_others(job_id, self.before)
        self.passed = [each for each in self.passed if each.trajectory.request.job_id != job_id]
        self.known = replace(
            known,
            moved=_of_others(job_id, known.moved),
            previews={key: each for key, each in known.previews.items() if key[0] != job_id},
            failed={failing: error for failing, error in known.failed.items() if failing != job_id},
        )

    def report(self) -> StepReport:
        """Wait for the device, and tell. Raises: torch.AcceleratorError where it is lost."""
        seconds = self.lap.wait()
        failed, finished = dict(self.known.failed), []
        for each in self.passed:
            request, stage = each.trajectory.request, each.trajectory.plan.stage
            if not each.is_finite:
                failed[request.job_id] = NotFiniteError(f"image {request.index} after stage {stage}")
            elif each.finished is not None:
                finished.append(each.finished)
        return replace(self.known, seconds=seconds, finished=finished, failed=failed, before=self.before)


def _of_others(job_id: str, images: Iterable[Trajectory]) -> list[Trajectory]:
    return [each for each in images if each.request.job_id != job_id]
