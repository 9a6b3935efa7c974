"""Which stage takes the next step, and with which rows.

Work is preemptible at every step, so the jobs that have least left go first: that makes the mean wait shortest, and a
short job never stands behind a long one. Nobody starves for it: an image is passed over at most for about as long as
its job's own work takes, a low priority's for 16 times that, a high one's for a sixteenth (`slack`).

Among the stages and row counts the one is taken that serves most urgency a second, urgency being one over slack. That
sum decides by itself what would otherwise take rules: full batches where they are cheaper a row; a short job alone
where they are not; images for the upsampler gathered until a step of them pays; rows of low priority where a batch has
room.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from engine.costs import StepCosts

Priority = Literal["high", "normal", "low"]
PATIENCE: dict[Priority, float] = {"high": 1 / 16, "normal": 1.0, "low": 16.0}
WASTE = 0.1  # share of time that a quicker but dearer batch may cost, where no more wait than fit a batch
PROMISE = 2.0  # times what it would take alone, in which a job is to end though long ones are there
SPARED = 2.0  # full batches' time: as much of WASTE is kept for jobs that end as promised only in smaller batches
KeyT = TypeVar("KeyT", bound=Hashable)  # of an image
Work = Sequence[tuple[str, int]]  # stages in the order of passing, and the steps that an image takes in each


@dataclass(slots=True)
class Job:
    """What a job has left: steps by stage, summed over its images."""

    id: str
    steps_left: dict[str, int]
    images: int = 0
    has_moved: bool = False
    due: float = 0.0  # when it is to end, where that can be, on the scheduler's clock


@dataclass(slots=True)
class Place:
    """Where an image stands."""

    job: Job
    patience: float
    ahead: list[tuple[str, int]]  # stages and steps left in them, the current one first
    since: float  # when it came or moved last, on the scheduler's clock


@dataclass(frozen=True)
class Choice(Generic[KeyT]):
    """A step to take: the images that move, the most urgent first, and the shape they are padded to."""

    stage: str
    keys: list[KeyT]
    row_shape: int


class Scheduler(Generic[KeyT]):
    """Orders the steps of images, known by their keys; its clock is the work it has given out, as the costs have it."""

    def __init__(self, costs: StepCosts, max_rows: int) -> None:
        self.costs, self.max_rows, self.clock = costs, max_rows, 0.0
        self._jobs: dict[str, Job] = {}
        self._places: dict[KeyT, Place] = {}
        self._waiting: dict[str, dict[KeyT, Place]] = {}  # by the stage of the next step
        self._spared = math.inf  # seconds that may go into keeping promises

    def enter(self, key: KeyT, job_id: str, priority: Priority, work: Work) -> None:
        """Let an image take part from the next step on."""
        job = self._jobs.setdefault(job_id, Job(job_id, {}))
        job.images += 1
        for stage, steps in work:
            job.steps_left[stage] = job.steps_left.get(stage, 0) + steps
        job.due = self.clock + PROMISE * self._seconds_left(job, job.images)
        place = self._places[key] = Place(job, PATIENCE[priority], list(work), self.clock)
        self._waiting.setdefault(work[0][0], {})[key] = place

    def leave(self, key: KeyT) -> None:
        """Forget an image, whether or not it has come to its end."""
        place = self._places.pop(key)
        if place.ahead:
            del self._waiting[place.ahead[0][0]][key]
        for stage, steps in place.ahead:
            place.job.steps_left[stage] -= steps
        place.job.images -= 1
        if place.job.images == 0:
            del self._jobs[place.job.id]

    def moved(self, keys: Iterable[KeyT]) -> None:
        """Note that images took a step."""
        for key in keys:
            place = self._places[key]
            stage, steps = place.ahead[0]
            place.job.steps_left[stage] -= 1
            place.job.has_moved, place.since = True, self.clock
            if steps > 1:
                place.ahead[0] = stage, steps - 1
                continue
            del place.ahead[0], self._waiting[stage][key]
            if place.ahead:
                self._waiting.setdefault(place.ahead[0][0], {})[key] = place

    def choose(self) -> Choice[KeyT] | None:
        """The next step, and the clock set to its end; None where no image has one to take."""
        lines = self._lines()
        if not lines:
            return None
        first = min(lines, key=lambda stage: lines[stage][0][0])
        if lines[first][0][0] < 0:
            lines = {first: lines[first]}  # whoever is overdue moves now, and brings the best batch of its stage along
        best = max((self._best_batch(stage, line) for stage, line in lines.items()), key=lambda each: each[0])
        _, stage, rows, extra = best
        self._spend(stage, rows, extra)
        return Choice(stage, [key for _, _, key in lines[stage][:rows]], self.costs.row_shape(stage, rows))

    def slack_of_newcomers(self) -> float:
        """What a job's slack must be below for it to share the next steps, and not wait behind those that are here."""
        slacks = sorted(slack for line in self._lines().values() for slack, _, _ in line)
        return slacks[self.max_rows - 1] if len(slacks) >= self.max_rows else math.inf

    def slack(self, work: Work, priority: Priority) -> float:
        """For how long a job with so much left may be passed over, seconds."""
        return PATIENCE[priority] * sum(steps * self.costs.row_seconds(stage) for stage, steps in work)

    def _lines(self) -> dict[str, list[tuple[float, int, KeyT]]]:
        """The images of each stage by slack, those with least first: slack, place in the order of coming, key."""
        row_seconds = {stage: self.costs.row_seconds(stage) for job in self._jobs.values() for stage in job.steps_left}
        left = {
            job.id: sum(steps * row_seconds[stage] for stage, steps in job.steps_left.items())
            for job in self._jobs.values()
        }
        lines = {}
        for stage, waiting in self._waiting.items():
            if waiting:
                # who just came sees its job start: as if that had one step
                lines[stage] = sorted(
                    (
                        place.patience * (left[place.job.id] if place.job.has_moved else row_seconds[stage])
                        - (self.clock - place.since),
                        index,
                        key,
                    )
                    for index, (key, place) in enumerate(waiting.items())
                )
        return lines

    def _best_batch(self, stage: str, line: Sequence[tuple[float, int, KeyT]]) -> tuple[float, str, int, float]:
        """How many of the first rows serve most urgency a second: that, the stage, they, and what they cost extra.

        The more images wait, the less of the device's time may be wasted on serving some of them sooner; but for jobs
        that end as promised in small batches alone, as long as there is time spared for them.
        """
        row_seconds = self.costs.row_seconds(stage)
        best, best_rows, best_extra, urgency, counted = -1.0, 0, 0.0, 0.0, 0
        for rows, extra in self._extra_seconds(stage, len(line)).items():
            urgency += sum(row_seconds / max(row_seconds, slack) for slack, _, _ in line[counted:rows])
            counted = rows
            value = urgency / self.costs.seconds(stage, rows)
            if value >= best and (
                self._is_cheap(stage, rows, extra)
                or (extra <= self._spared and any(self._is_pressed(key) for _, _, key in line[:rows]))
            ):
                best, best_rows, best_extra = value, rows, extra
        return best, stage, best_rows, best_extra

    def _is_cheap(self, stage: str, rows: int, extra: float) -> bool:
        """Whether a batch wastes no more of its time than any may."""
        return extra <= self._share * (self.costs.seconds(stage, rows) - extra)

    @property
    def _share(self) -> float:
        return WASTE * self.max_rows / len(self._places)

    def _is_pressed(self, key: KeyT) -> bool:
        """Whether an image's job ends as promised by itself, but not in the largest batches."""
        job = self._places[key].job
        time_left = job.due - self.clock
        return self._seconds_left(job, job.images) <= time_left < self._seconds_left(job, self.max_rows)

    def _seconds_left(self, job: Job, rows: int) -> float:
        """What the steps of a job's images take in batches of so many rows."""
        return sum(
            steps / job.images * self.costs.seconds(stage, min(rows, self.costs.row_shapes(stage)[-1]))
            for stage, steps in job.steps_left.items()
        )

    def _extra_seconds(self, stage: str, waiting: int) -> dict[int, float]:
        """What batches of rows that wait cost over the cheapest of them a row, by row counts worth a trial."""
        shapes = self.costs.row_shapes(stage)
        here = min(waiting, self.max_rows, shapes[-1])
        seconds = {rows: self.costs.seconds(stage, rows) for rows in (*(each for each in shapes if each < here), here)}
        least = min(each / rows for rows, each in seconds.items())
        return {rows: max(0.0, each - rows * least) for rows, each in seconds.items()}

    def _spend(self, stage: str, rows: int, extra: float) -> None:
        """Let a step's time pass, and take what it costs over the cheapest a row from what is spared."""
        seconds = self.costs.seconds(stage, rows)
        most = SPARED * max(self.costs.seconds(each, self.costs.row_shapes(each)[-1]) for each in self._waiting)
        spent = 0.0 if self._is_cheap(stage, rows, extra) else extra
        self._spared = min(self._spared - spent + self._share * seconds, most)
        self.clock += seconds
