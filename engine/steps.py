"""A step of the engine, from its launch on the device until it is retired."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from engine.errors import NotFiniteError
from engine.step_times import Timer
from engine.trajectory import ImageRequest, Trajectory


@dataclass(frozen=True)
class Finished:
    """An image that has passed its last stage: x [3, H, W] after that stage, and its pixels, uint8, on the host."""

    request: ImageRequest
    x: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Passed:
    """An image that has ended a stage. is_finite: whether its state [3, H, W] is finite, a tensor [] on the host.

    finished is None if another stage follows.
    """

    trajectory: Trajectory
    is_finite: Tensor
    finished: Finished | None


@dataclass(frozen=True)
class StepReport:
    """A retired step: its stage, its row shape, and the images that moved, before the step and after it.

    seconds: the device's time for num_rows images, including those of jobs that were aborted before the step was
    retired. It is a valid measurement only if the batch is_whole: computed at once, without a failure.
    previews: predictions [3, H, W], uint8, on the host, by image key, for images that request them.
    failed: the errors of jobs that cannot be computed; all their images have left the engine. torch.OutOfMemoryError
    means that memory did not suffice for the smallest shape, which is no job's fault.
    lowered: if memory did not suffice, the row shapes that are left, by part of the stage (network or guide).
    """

    stage: str
    moved: list[Trajectory]
    before: list[Trajectory]
    row_shape: int
    num_rows: int
    is_whole: bool
    previews: Mapping[tuple[str, int], Tensor]
    lowered: Mapping[str, tuple[int, ...]]
    seconds: float
    finished: list[Finished]
    failed: Mapping[str, Exception]


@dataclass
class LaunchedStep:
    """A step that was launched on a device. Its tensors on the host are valid when its timer is done.

    before: the images that moved, in their states before the step, because for callers of the engine a step is taken
    only when it is retired.
    """

    stage: str
    row_shape: int
    num_rows: int
    is_whole: bool
    expected_seconds: float
    timer: Timer
    before: list[Trajectory]
    moved: list[Trajectory]
    lowered: Mapping[str, tuple[int, ...]]
    previews: dict[tuple[str, int], Tensor]
    passed: list[Passed]
    failed: dict[str, Exception]

    def drop(self, job_id: str) -> None:
        """Remove a job from the report."""
        self.before = _of_others(job_id, self.before)
        self.moved = _of_others(job_id, self.moved)
        self.passed = [each for each in self.passed if each.trajectory.request.job_id != job_id]
        self.previews = {key: each for key, each in self.previews.items() if key[0] != job_id}
        self.failed.pop(job_id, None)

    def retire(self) -> StepReport:
        """Wait for the device, and report. Raises: torch.AcceleratorError if the device is lost."""
        seconds = self.timer.wait()
        failed, finished = dict(self.failed), []
        for each in self.passed:
            request, stage = each.trajectory.request, each.trajectory.plan.stage
            if not each.is_finite:
                failed[request.job_id] = NotFiniteError(request.job_id, request.index, stage)
            elif each.finished is not None:
                finished.append(each.finished)
        return StepReport(
            stage=self.stage,
            moved=self.moved,
            before=self.before,
            row_shape=self.row_shape,
            num_rows=self.num_rows,
            is_whole=self.is_whole,
            previews=self.previews,
            lowered=self.lowered,
            seconds=seconds,
            finished=finished,
            failed=failed,
        )


def _of_others(job_id: str, images: Iterable[Trajectory]) -> list[Trajectory]:
    return [each for each in images if each.request.job_id != job_id]
