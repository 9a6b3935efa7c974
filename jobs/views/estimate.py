"""Estimates the time of queued work from the step costs that workers measured."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, median
from typing import NamedTuple

from jobs.contract.request import ResolvedRequest
from jobs.contract.work import RUNNING, evaluations_left, evaluations_of, rank_of, work_of
from jobs.views.fleet import Fleet, StepMs
from vocabulary.priorities import PRIORITIES, Priority

UNKNOWN_ERROR = 0.5  # relative error of an estimate before anything was measured
UNKNOWN_ROW_MS = 1.0  # milliseconds of a row step before anything was measured, by order of magnitude
FEWEST_RATIOS = 8  # with fewer ended jobs, their ratios do not correct other estimates


@dataclass(frozen=True)
class Backlog:
    """The queued and running work of a pipeline, from its counters."""

    pipeline: str
    lengths: Mapping[str, int]  # jobs queued, by priority
    work: Mapping[str, int]  # row steps, by "priority:rank:stage" and "running:rank:stage"
    ratios: tuple[float, ...] = ()  # actual to estimated time of recent jobs
    beside: tuple["Backlog", ...] = ()  # backlogs of the other pipelines of its workers, without their ratios

    def of(self, groups: Collection[str], before: float = math.inf) -> dict[str, float]:
        """Sum row steps by stage.

        groups: the counted priorities, or RUNNING for the jobs in progress.
        before: count only the work before a job of this rank: lower ranks, and half of the same rank.
        """
        total: dict[str, float] = {}
        for group, rank, stage, row_steps in self._counters:
            if group in groups and rank <= before:
                total[stage] = total.get(stage, 0) + row_steps * (0.5 if rank == before else 1)
        return total

    @cached_property
    def _counters(self) -> list[tuple[str, int, str, int]]:
        split = [(name.split(":"), row_steps) for name, row_steps in self.work.items() if row_steps > 0]
        return [(group, int(rank), stage, row_steps) for (group, rank, stage), row_steps in split]

    @property
    def bias(self) -> float:
        """The median ratio of actual to estimated time of recent jobs."""
        return median(self.ratios) if len(self.ratios) >= FEWEST_RATIOS else 1.0

    @property
    def error(self) -> float:
        """Mean relative error of recent estimates after removal of their bias."""
        bias = self.bias
        return fmean(abs(ratio / bias - 1) for ratio in self.ratios) if self.ratios else UNKNOWN_ERROR


class Backlogs:
    """The backlogs of pipelines, read together and updated with jobs queued since."""

    def __init__(self, fleet: Fleet, counted: dict[str, Backlog]) -> None:
        """`counted`: each pipeline's own backlog, also for the other pipelines of their workers."""
        self._fleet, self._counted = fleet, counted

    def copy(self) -> "Backlogs":
        return Backlogs(self._fleet, dict(self._counted))

    def of(self, pipeline: str) -> Backlog:
        """A pipeline's backlog, with the backlogs beside it."""
        beside = tuple(self._counted[other] for other in self._fleet.shares(pipeline) if other != pipeline)
        return replace(self._counted[pipeline], beside=beside)

    def add(self, request: ResolvedRequest, work: Mapping[str, int]) -> None:
        """Count a job that is queued after the read."""
        present, rank = self._counted[request.model], rank_of(request.priority, work)
        more = {f"{request.priority}:{rank}:{stage}": row_steps for stage, row_steps in work.items()}
        self._counted[request.model] = replace(
            present,
            lengths={**present.lengths, request.priority: present.lengths[request.priority] + 1},
            work={**present.work, **{name: present.work.get(name, 0) + each for name, each in more.items()}},
        )


class Load(NamedTuple):
    """The work of a pipeline's workers."""

    row_steps: Mapping[str, float]  # by stage, in that pipeline's networks
    others_ms: float  # milliseconds of a worker in networks that only other pipelines use


class Estimator:
    """Converts work to seconds; None before any worker has announced step costs.

    Workers serve all their pipelines, so a pipeline's jobs also wait for the work of every pipeline that shares workers
    with it, by the share that falls on these workers (`Fleet.shares`).
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def own_seconds(self, backlog: Backlog, priority: str) -> float | None:
        """Seconds that a pipeline's workers need for its own queue of one priority, without other pipelines' jobs."""
        row_ms = self._fleet.row_ms.get(backlog.pipeline)
        return self._shared_seconds(backlog, work_ms(row_ms, backlog.of((priority,)))) if row_ms else None

    def cost_ms(self, pipeline: str, work: Mapping[str, int]) -> int:
        """Device milliseconds of work in the fullest batches; a guess before any worker has announced step costs."""
        row_ms = self._fleet.row_ms.get(pipeline)
        return math.ceil(work_ms(row_ms, work) if row_ms else sum(work.values()) * UNKNOWN_ROW_MS)

    def queued_seconds(self, backlog: Backlog) -> float | None:
        """Seconds that a pipeline's workers need for all work that is queued for them, in all their pipelines."""
        row_ms = self._fleet.row_ms.get(backlog.pipeline)
        if not row_ms:
            return None
        queued = self._load(backlog, PRIORITIES)
        return self._shared_seconds(backlog, work_ms(row_ms, queued.row_steps) + queued.others_ms)

    def jobs_ahead(self, backlog: Backlog, priority: Priority, place: int | None) -> int:
        """The number of jobs that may be claimed before a job that has `place` others before it in its queue.

        Among all pipelines of its workers, higher priorities go first, and queues of equal priority take turns.
        place: None if the job is being claimed.
        """
        higher = PRIORITIES[: PRIORITIES.index(priority)]
        turns = 0 if place is None else place + 1
        shares, ahead = self._fleet.shares(backlog.pipeline), 0.0
        for each in backlog.beside:
            share = shares.get(each.pipeline, 0.0)
            ahead += share * sum(each.lengths[one] for one in higher) + min(share * each.lengths[priority], turns)
        return sum(backlog.lengths[one] for one in higher) + (place or 0) + round(ahead)

    def eta_seconds(
        self, backlog: Backlog, request: ResolvedRequest, *, ahead: float = 1.0, done: float | None = None
    ) -> float | None:
        """Seconds until a job's images are stored, estimated from queued and running work; not corrected by `bias`.

        ahead: the share of the jobs in its queue that go before it, because callers take turns.
        done: the share of its steps that a running job has taken; None for a job that is not counted as running.
        If a job's images fit the running batches, they join the next step and share every step. Otherwise the job waits
        for the work that the scheduler puts before it, of which the running part is half done on average. Images in
        other networks take no room in its batches, but it waits for their steps in either case.
        """
        step_ms = self._fleet.step_ms.get(backlog.pipeline)
        if not step_ms:
            return None
        work = work_of(request)
        rank = rank_of(request.priority, work)
        queued, running = self._load(backlog, PRIORITIES, rank), self._load(backlog, (RUNNING,), rank)
        if done is not None:  # `Backlog.of` counts half of the work of its rank, and so half of its own
            others = {stage: max(0.0, n - work.get(stage, 0) / 2) for stage, n in running.row_steps.items()}
            running = running._replace(row_steps=others)
        behind = {stage: (1 - ahead) * n for stage, n in backlog.of((request.priority,), rank).items()}
        queued = queued._replace(row_steps={stage: n - behind.get(stage, 0) for stage, n in queued.row_steps.items()})
        workers = max(1, len(self._fleet.workers_of(backlog.pipeline)))
        taken = {
            stage: (queued.row_steps.get(stage, 0) + running.row_steps.get(stage, 0)) / workers for stage in step_ms
        }
        waiting_ms = queued.others_ms + running.others_ms / 2
        if not has_room(step_ms, request, taken):
            row_ms = self._fleet.row_ms[backlog.pipeline]
            waiting_ms += work_ms(row_ms, queued.row_steps) + work_ms(row_ms, running.row_steps) / 2
            taken = dict.fromkeys(step_ms, math.inf)
        seconds = self._shared_seconds(backlog, waiting_ms)
        left = evaluations_left(request, done or 0.0)
        for stage, evaluations in evaluations_of(request).items():
            if shapes := step_ms.get(stage):
                beside = math.ceil(min(taken.get(stage, 0) / evaluations, max(shapes)))
                seconds += left[stage] * batch_ms(shapes, request.num_rows, beside) / 1000
        return seconds

    def _load(self, backlog: Backlog, groups: Collection[str], before: float = math.inf) -> Load:
        """The work of the workers of a backlog's pipeline, as `Backlog.of` counts it."""
        pipeline, row_steps, others_ms = backlog.pipeline, backlog.of(groups, before), 0.0
        shares = self._fleet.shares(pipeline)
        for other in backlog.beside:
            share, row_ms = shares.get(other.pipeline, 0.0), self._fleet.row_ms.get(other.pipeline, {})
            for stage, number in other.of(groups, before).items():
                if self._fleet.shares_network(stage, pipeline, other.pipeline):
                    row_steps[stage] = row_steps.get(stage, 0) + number * share
                else:
                    others_ms += number * share * row_ms.get(stage, 0)
        return Load(row_steps, others_ms)

    def _shared_seconds(self, backlog: Backlog, ms: float) -> float:
        """Seconds in which a pipeline's workers together do work that takes one worker `ms` milliseconds."""
        return ms / 1000 / max(1, len(self._fleet.workers_of(backlog.pipeline)))


def work_ms(row_ms: Mapping[str, float], work: Mapping[str, float]) -> float:
    """Milliseconds of a worker for row steps by stage, in the fullest batches; 0 for those of an unmeasured stage."""
    return sum(row_steps * row_ms.get(stage, 0) for stage, row_steps in work.items())


def has_room(step_ms: StepMs, request: ResolvedRequest, taken: Mapping[str, float]) -> bool:
    """Return whether a job's images fit a batch beside others' row steps, assuming equal numbers of steps."""
    return all(
        request.num_rows + math.ceil(taken.get(stage, 0) / evaluations) <= max(step_ms[stage])
        for stage, evaluations in evaluations_of(request).items()
        if step_ms.get(stage)
    )


def batch_ms(shapes: Mapping[int, float], rows: int, beside: int) -> float:
    """Milliseconds of a step with `rows` rows and `beside` rows of others: the cost of its row shape."""
    largest = max(shapes)
    fitting = min((shape for shape in shapes if shape >= rows + beside), default=largest)
    return shapes[fitting] * max(1, -(-rows // largest))
