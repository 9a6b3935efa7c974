"""Chooses the stage of the next step, and its images.

A job can be interrupted at every step, so the jobs with the least remaining work go first. That makes the mean wait
shortest, and a short job never waits for a long one to end. No image starves: it is passed over for at most about as
long as its job's own work takes; for 16 times that at low priority, for a sixteenth at high priority (`slack`).

Overdue images run first. Otherwise the scheduler picks the stage and batch size with the highest urgency per second of
device time. The urgency of an image is one over its slack, and that of a batch is the sum over its images. Other rules
follow from this one: batches are full if full batches are cheaper per row, and a short job runs alone if they are not;
images for the upsampler wait until a step of them is worth its time; rows of low priority fill the rest of a batch.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.costs import StepCosts
from vocabulary.priorities import PRIORITY_RATIO, Priority

SLACK_FACTORS: dict[Priority, float] = {"high": 1 / PRIORITY_RATIO, "normal": 1.0, "low": float(PRIORITY_RATIO)}
EXTRA_TIME_SHARE = 0.1  # largest share of extra time for a smaller, quicker batch, if one batch fits all waiting images
PROMISE = 2.0  # deadline of a job beside long ones, as a multiple of the job's time alone
RESERVE_BATCHES = 2.0  # largest reserve of extra time, in full batches, for jobs that meet PROMISE only in small ones
KeyT = TypeVar("KeyT", bound=Hashable)  # of an image
Work = Sequence[tuple[str, int]]  # stages in their order, each with the number of steps that an image takes in it


@dataclass(slots=True)
class Job:
    """The remaining work of a job: steps by stage, summed over its images."""

    id: str
    steps_left: dict[str, int]
    images: int = 0
    has_moved: bool = False
    due: float = 0.0  # its deadline on the scheduler's clock, if it can be met


@dataclass(slots=True)
class WaitingImage:
    """An image that waits for its next step."""

    job: Job
    slack_factor: float
    stages_left: list[tuple[str, int]]  # stages with their remaining steps, the current one first
    since: float  # its arrival or its last step, on the scheduler's clock


@dataclass(frozen=True)
class Choice(Generic[KeyT]):
    """A step to take: the images that move, the most urgent first, and the shape they are padded to."""

    stage: str
    keys: list[KeyT]
    row_shape: int


class Scheduler(Generic[KeyT]):
    """Orders the steps of images by key. Its clock is the sum of the estimated times of the steps that it chose."""

    def __init__(self, costs: StepCosts, max_rows: int) -> None:
        self.costs, self.max_rows, self.clock = costs, max_rows, 0.0
        self._jobs: dict[str, Job] = {}
        self._images: dict[KeyT, WaitingImage] = {}
        self._waiting: dict[str, dict[KeyT, WaitingImage]] = {}  # by the stage of the next step
        self._reserve = math.inf  # seconds of extra time that may be spent on deadlines

    def enter(self, key: KeyT, job_id: str, priority: Priority, work: Work) -> None:
        """Add an image; it can move in the next step."""
        job = self._jobs.setdefault(job_id, Job(job_id, {}))
        job.images += 1
        for stage, steps in work:
            job.steps_left[stage] = job.steps_left.get(stage, 0) + steps
        job.due = self.clock + PROMISE * self._seconds_left(job, job.images)
        image = self._images[key] = WaitingImage(job, SLACK_FACTORS[priority], list(work), self.clock)
        self._waiting.setdefault(work[0][0], {})[key] = image

    def leave(self, key: KeyT) -> None:
        """Forget an image, finished or not."""
        image = self._images.pop(key)
        if image.stages_left:
            del self._waiting[image.stages_left[0][0]][key]
        for stage, steps in image.stages_left:
            image.job.steps_left[stage] -= steps
        image.job.images -= 1
        if image.job.images == 0:
            del self._jobs[image.job.id]

    def moved(self, keys: Iterable[KeyT]) -> None:
        """Record that images took a step."""
        for key in keys:
            image = self._images[key]
            stage, steps = image.stages_left[0]
            image.job.steps_left[stage] -= 1
            image.job.has_moved, image.since = True, self.clock
            if steps > 1:
                image.stages_left[0] = stage, steps - 1
                continue
            del image.stages_left[0], self._waiting[stage][key]
            if image.stages_left:
                self._waiting.setdefault(image.stages_left[0][0], {})[key] = image

    def choose(self) -> Choice[KeyT] | None:
        """Choose the next step and advance the clock to its end; return None if no image waits."""
        by_stage = self._images_by_slack()
        if not by_stage:
            return None
        first = min(by_stage, key=lambda stage: by_stage[stage][0][0])
        if by_stage[first][0][0] < 0:
            by_stage = {first: by_stage[first]}  # an overdue image runs now, in the best batch of its stage
        best = max((self._best_batch(stage, images) for stage, images in by_stage.items()), key=lambda each: each[0])
        _, stage, rows, extra = best
        self._spend(stage, rows, extra)
        return Choice(stage, [key for _, _, key in by_stage[stage][:rows]], self.costs.row_shape(stage, rows))

    def slack_of_newcomers(self) -> float:
        """Return the slack below which a new job shares the next steps and does not wait behind present images."""
        slacks = sorted(slack for images in self._images_by_slack().values() for slack, _, _ in images)
        return slacks[self.max_rows - 1] if len(slacks) >= self.max_rows else math.inf

    def slack(self, work: Work, priority: Priority) -> float:
        """Return the seconds for which a job with this remaining work may be passed over."""
        return SLACK_FACTORS[priority] * sum(steps * self.costs.row_seconds(stage) for stage, steps in work)

    def _images_by_slack(self) -> dict[str, list[tuple[float, int, KeyT]]]:
        """Return the images of each stage, those with the least slack first: slack, order of arrival, key."""
        row_seconds = {stage: self.costs.row_seconds(stage) for job in self._jobs.values() for stage in job.steps_left}
        left = {
            job.id: sum(steps * row_seconds[stage] for stage, steps in job.steps_left.items())
            for job in self._jobs.values()
        }
        by_stage = {}
        for stage, waiting in self._waiting.items():
            if waiting:
                # a new job starts soon: until it has moved, it counts as if it had one step
                by_stage[stage] = sorted(
                    (
                        image.slack_factor * (left[image.job.id] if image.job.has_moved else row_seconds[stage])
                        - (self.clock - image.since),
                        index,
                        key,
                    )
                    for index, (key, image) in enumerate(waiting.items())
                )
        return by_stage

    def _best_batch(self, stage: str, images: Sequence[tuple[float, int, KeyT]]) -> tuple[float, str, int, float]:
        """Find the batch of a stage with the highest urgency per second; return urgency, stage, rows and extra seconds.

        The more images wait, the less extra time may be spent on serving some of them sooner. Jobs that meet their
        deadline in small batches only may use the reserve.
        """
        row_seconds = self.costs.row_seconds(stage)
        best, best_rows, best_extra, urgency, counted = -1.0, 0, 0.0, 0.0, 0
        for rows, extra in self._extra_seconds(stage, len(images)).items():
            urgency += sum(row_seconds / max(row_seconds, slack) for slack, _, _ in images[counted:rows])
            counted = rows
            value = urgency / self.costs.seconds(stage, rows)
            if value >= best and (
                self._is_cheap(stage, rows, extra)
                or (extra <= self._reserve and any(self._is_pressed(key) for _, _, key in images[:rows]))
            ):
                best, best_rows, best_extra = value, rows, extra
        return best, stage, best_rows, best_extra

    def _is_cheap(self, stage: str, rows: int, extra: float) -> bool:
        """Return whether the extra time of a batch is within the share that any batch may take."""
        return extra <= self._share * (self.costs.seconds(stage, rows) - extra)

    @property
    def _share(self) -> float:
        return EXTRA_TIME_SHARE * self.max_rows / len(self._images)

    def _is_pressed(self, key: KeyT) -> bool:
        """Return whether an image's job would meet its deadline alone, but not in the largest batches."""
        job = self._images[key].job
        time_left = job.due - self.clock
        return self._seconds_left(job, job.images) <= time_left < self._seconds_left(job, self.max_rows)

    def _seconds_left(self, job: Job, rows: int) -> float:
        """Return the time of a job's remaining steps in batches of this many rows."""
        return sum(
            steps / job.images * self.costs.seconds(stage, min(rows, self.costs.row_shapes(stage)[-1]))
            for stage, steps in job.steps_left.items()
        )

    def _extra_seconds(self, stage: str, waiting: int) -> dict[int, float]:
        """Return, by row count, a batch's seconds beyond those of its rows at the lowest time per row."""
        shapes = self.costs.row_shapes(stage)
        here = min(waiting, self.max_rows, shapes[-1])
        seconds = {rows: self.costs.seconds(stage, rows) for rows in (*(each for each in shapes if each < here), here)}
        least = min(each / rows for rows, each in seconds.items())
        return {rows: max(0.0, each - rows * least) for rows, each in seconds.items()}

    def _spend(self, stage: str, rows: int, extra: float) -> None:
        """Advance the clock by a step, and take its extra time from the reserve."""
        seconds = self.costs.seconds(stage, rows)
        most = RESERVE_BATCHES * max(
            self.costs.seconds(each, self.costs.row_shapes(each)[-1]) for each in self._waiting
        )
        spent = 0.0 if self._is_cheap(stage, rows, extra) else extra
        self._reserve = min(self._reserve - spent + self._share * seconds, most)
        self.clock += seconds
