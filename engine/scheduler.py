"""Which stage takes the next step, and with which rows.

Work is preemptible at every step, so the jobs that have least left go first: that makes the mean wait shortest, and a
short job never stands behind a long one. Nobody starves for it: an image is passed over at most for about as long as
its job's own work takes, a low priority's for 16 times that, a high one's for a sixteenth (`slack`).

Among the stages and row counts the one is taken that serves most urgency a second, urgency being one over slack. That
sum decides by itself what would otherwise take rules: full batches where they are cheaper a row; a short job alone
where they are not; images for the upsampler gathered until a step of them pays; rows of low priority where a batch has
room.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from engine.costs import StepCosts

Priority = Literal["high", "normal", "low"]
PATIENCE: dict[Priority, float] = {"high": 1 / 16, "normal": 1.0, "low": 16.0}
KeyT = TypeVar("KeyT", bound=Hashable)  # of an image
Work = Sequence[tuple[str, int]]  # stages in the order of passing, and the steps that an image takes in each


@dataclass(slots=True)
class Job:
    """What a job has left: steps by stage, summed over its images."""

    id: str
    steps_left: dict[str, int]
    images: int = 0
    has_moved: bool = False


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
        self._places: dict[KeyT, Place] = {}
        self._jobs: dict[str, Job] = {}

    def enter(self, key: KeyT, job_id: str, priority: Priority, work: Work) -> None:
        """Let an image take part from the next step on."""
        job = self._jobs.setdefault(job_id, Job(job_id, {}))
        job.images += 1
        for stage, steps in work:
            job.steps_left[stage] = job.steps_left.get(stage, 0) + steps
        self._places[key] = Place(job, PATIENCE[priority], list(work), self.clock)

    def leave(self, key: KeyT) -> None:
        """Forget an image, whether or not it has come to its end."""
        place = self._places.pop(key)
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
            place.ahead[:1] = [(stage, steps - 1)] if steps > 1 else []
            place.job.steps_left[stage] -= 1
            place.job.has_moved, place.since = True, self.clock

    def choose(self) -> Choice[KeyT] | None:
        """The next step, and the clock set to its end; None where no image has one to take."""
        slacks = self._slacks()
        if not slacks:
            return None
        slack, most_urgent = min(((slack, key) for key, slack in slacks.items()), key=lambda each: each[0])
        # whoever is overdue moves now, and brings the best batch of its stage along
        stages = {self._places[key].ahead[0][0] for key in ([most_urgent] if slack < 0 else slacks)}
        _, stage, keys = max((self._best_batch(stage, slacks) for stage in sorted(stages)), key=lambda each: each[0])
        self.clock += self.costs.seconds(stage, len(keys))
        return Choice(stage, keys, self.costs.row_shape(stage, len(keys)))

    def would_run(self, work: Work, priority: Priority) -> bool:
        """Whether a job's images would share the next steps, and not wait behind those that are here."""
        left = sum(steps * self.costs.row_seconds(stage) for stage, steps in work)
        slack = PATIENCE[priority] * left
        return sum(each <= slack for each in self._slacks().values()) < self.max_rows

    def _slacks(self) -> Mapping[KeyT, float]:
        """For how long each image may still be passed over, seconds; below 0 for one that is overdue."""
        row_seconds = {stage: self.costs.row_seconds(stage) for job in self._jobs.values() for stage in job.steps_left}
        left = {
            job.id: sum(steps * row_seconds[stage] for stage, steps in job.steps_left.items())
            for job in self._jobs.values()
        }
        slacks = {}
        for key, place in self._places.items():
            if place.ahead:
                # who just came sees its job start: as if that had one step
                work = left[place.job.id] if place.job.has_moved else row_seconds[place.ahead[0][0]]
                slacks[key] = place.patience * work - (self.clock - place.since)
        return slacks

    def _best_batch(self, stage: str, slacks: Mapping[KeyT, float]) -> tuple[float, str, list[KeyT]]:
        """The rows of a stage that serve most urgency a second, and how much that is."""
        here = [key for key in slacks if self._places[key].ahead[0][0] == stage]
        here = sorted(here, key=slacks.__getitem__)[: self.max_rows]
        floor = self.costs.row_seconds(stage)
        best, best_rows, urgency = 0.0, 0, 0.0
        worth_trying = {*self.costs.row_shapes(stage), len(here)}
        for rows, key in enumerate(here, start=1):
            urgency += floor / max(floor, slacks[key])
            if rows in worth_trying and (value := urgency / self.costs.seconds(stage, rows)) >= best:
                best, best_rows = value, rows
        return best, stage, here[:best_rows]
