"""Continuous batching at the level of a step: a request joins the next step, a finished one leaves at once."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.pixels import from_uint8, to_uint8
from diffusion.tables import SamplerTable
from diffusion.transfer import download, upload
from engine.costs import StepCosts
from engine.laps import lap_on, works_by_itself
from engine.scheduler import Scheduler
from engine.stage import Stage
from engine.steps import Begun, Finished, Passed, StepReport
from engine.trajectory import ImageRequest, ImageState, StagePlan, Trajectory


class DuplicateImageError(Exception):
    """The image is in the engine already."""


class UnfitStateError(Exception):
    """The state is none that the image could be in here."""


class Engine:
    """Batches the steps of unrelated images; owns no thread and no I/O.

    Who moves in a step is the scheduler's choice. It goes by `costs`; whoever hears what steps took notes it there.

    A device that works by itself is given the next step while it is at the one before, so that it waits for the host
    neither to prepare nor to tell of one. depth is how many steps it is given before the first is told of; to whoever
    asks the engine, a step is taken when it is told of.
    """

    def __init__(self, stages: Mapping[str, Stage], max_rows: int, depth: int | None = None) -> None:
        self.stages, self.max_rows = stages, max_rows
        self.depth = depth or (2 if any(works_by_itself(stage.device) for stage in stages.values()) else 1)
        self.host_seconds = 0.0  # that it took to begin the last step
        self.launched = ("none", 0)  # stage and rows of the last step, for a thread that watches a device that hangs
        self._begun: deque[Begun] = deque()  # and not told of, the oldest first
        self.costs = StepCosts({key: stage.network_shapes for key, stage in stages.items()})
        self.scheduler: Scheduler[tuple[str, int]] = Scheduler(self.costs, max_rows)
        self._live: dict[tuple[str, int], Trajectory] = {}  # in order of arrival

    @property
    def busy(self) -> bool:
        return bool(self._live or self._begun)

    @property
    def seconds_ahead(self) -> float:
        """For how long the device has work, as the costs have it, counted from the end of the step told of last."""
        return sum(each.expected_seconds for each in self._begun if not each.lap.is_over)

    @property
    def rows_in_flight(self) -> int:
        return len(self._live)

    @property
    def row_shapes(self) -> tuple[int, ...]:
        """Row counts that steps of all stages may be padded to, ascending; fewer where memory did not suffice."""
        return tuple(sorted(set.intersection(*(set(stage.network_shapes) for stage in self.stages.values()))))

    def add(self, request: ImageRequest, state: ImageState | None = None) -> None:
        """Let an image join the next step of its first stage, or go on from a state that `states` gave.

        Raises: DuplicateImageError; UnknownOfferError for a plan that a stage of it has no table for; UnfitStateError;
        torch.OutOfMemoryError where there is no room for what it starts from. On any of them it is not here.
        """
        key = (request.job_id, request.index)
        if key in self._live or any(key == each.key for begun in self._begun for each in begun.before):
            raise DuplicateImageError(f"image {request.index} of job {request.job_id}")
        self.check(request)
        entered = self._live[key] = self._enter(request) if state is None else self._enter_again(request, state)
        ahead = [(plan.stage, len(self._table(plan))) for plan in request.plans[entered.stage_index :]]
        ahead[0] = entered.plan.stage, len(entered.table) - entered.row
        self.scheduler.enter(key, request.job_id, request.priority, ahead)

    def states(self, job_id: str) -> dict[int, ImageState]:
        """Where a job's images that are here stand, by index; to be used before the next step."""
        here = [*self._live.values(), *(each for begun in reversed(self._begun) for each in begun.before)]
        return {each.request.index: each.state for each in here if each.request.job_id == job_id}

    def check(self, request: ImageRequest) -> None:
        """Raises: UnknownOfferError for a plan that a stage has no table for.

        Before an image enters, and not when it gets there: then its neighbours would fail with it.
        """
        for plan in request.plans:
            self._table(plan)

    def abort(self, job_id: str) -> bool:
        """Drop all images of a job; False if there were none: a lost race, not an error."""
        was_here = bool(self.states(job_id))
        for key in [key for key in self._live if key[0] == job_id]:
            self._leave(key)
        for begun in self._begun:
            begun.drop(job_id)
        return was_here

    def step(self) -> StepReport | None:
        """Take one step of one stage, and tell of it; None where nothing is live. Raises: what a turn does."""
        while (report := self.turn()) is None and self._begun:
            pass
        return report

    def turn(self, *, ahead: bool = True) -> StepReport | None:
        """Begin one more step, and tell of the oldest once as many are begun as may be; None where none is to be told.

        ahead: whether steps may be begun before the one before is told of, as many as `depth` says.
        Who calls this has time before each step is begun, the second of a device that was idle included.
        A batch that fails is bisected, so that one bad row fails its own job alone and the others move on. So is one
        that there is too little memory for; the stage takes smaller ones from then on.
        Raises: torch.AcceleratorError where the device is lost, for the process to end with.
        """
        depth = self.depth if ahead else 1
        has_begun = len(self._begun) < depth and self._begin()
        if not self._begun or (has_begun and len(self._begun) < depth):
            return None
        report = self._begun.popleft().report()
        for job_id in report.failed:
            self.abort(job_id)
        return report

    def _begin(self) -> bool:
        """Give the device one more step; False where no image has one to take."""
        started = time.perf_counter()
        choice = self.scheduler.choose()
        if choice is None:
            return False
        batch, stage = [self._live[key] for key in choice.keys], self.stages[choice.stage]
        self.launched = choice.stage, len(batch)
        expected, shapes = self.costs.seconds(choice.stage, choice.row_shape), stage.row_shapes
        failed: dict[str, Exception] = {}
        lap = lap_on(stage.device)
        moved = self._take(stage, batch, failed)
        lowered = {part: left for part, left in stage.row_shapes.items() if left != shapes[part]}
        if lowered:
            self.costs.keep(choice.stage, stage.network_shapes)
        before = [self._live[each.key] for each in moved]
        is_whole = not failed and not lowered
        self._live |= {each.key: each for each in moved}
        self.scheduler.moved(each.key for each in moved)
        previews, passed = self._advance(moved, failed)
        lap.end()
        known = StepReport(choice.stage, moved, choice.row_shape, len(moved), is_whole, previews, lowered)
        begun = Begun(known, expected, lap, before, passed)
        self._begun.append(begun)
        for job_id in failed:
            self.abort(job_id)
        begun.known = replace(begun.known, failed=failed)
        self.host_seconds = time.perf_counter() - started
        return True

    def _take(self, stage: Stage, batch: list[Trajectory], failed: dict[str, Exception]) -> list[Trajectory]:
        """The batch, less what failed, as it stands after a step."""
        try:
            return stage.step(batch)
        except torch.AcceleratorError:
            raise  # every later call of this process fails too: it would take all jobs of the queue and fail them
        except Exception as error:  # noqa: BLE001 - whatever a row breaks must stay that row's
            if len(batch) == 1:
                failed[batch[0].request.job_id] = _light(error)
                return []
            lacked_memory = isinstance(error, torch.OutOfMemoryError)
        # here, where the exception and all that it held are gone
        middle = len(batch) // 2
        moved = self._take(stage, batch[:middle], failed) + self._take(stage, batch[middle:], failed)
        if lacked_memory and len(moved) == len(batch):  # else it was no matter of their number
            stage.give_up(len(batch))
        return moved

    def _table(self, plan: StagePlan) -> SamplerTable:
        options = plan.time_grid, plan.thresholding, plan.strength, plan.eps_scale
        return self.stages[plan.stage].table(plan.sampler, plan.num_steps, plan.eta, *options)

    def _enter(self, request: ImageRequest) -> Trajectory:
        plan, table = request.plans[0], self._table(request.plans[0])
        return Trajectory(request, table, *self.stages[plan.stage].begin(request, plan, table))

    def _enter_again(self, request: ImageRequest, state: ImageState) -> Trajectory:
        if not 0 <= state.stage_index < len(request.plans):
            raise UnfitStateError(f"image {request.index} has no stage {state.stage_index}")
        plan = request.plans[state.stage_index]
        table, stage = self._table(plan), self.stages[plan.stage]
        if not 0 <= state.row < len(table) or not state.x.shape == state.memory.shape == stage.shape:
            raise UnfitStateError(f"image {request.index}: row {state.row} and {list(state.x.shape)} in {plan.stage}")
        x, memory = upload(state.x, stage.device), upload(state.memory, stage.device)
        low_res = None if state.low_res is None else upload(state.low_res, stage.device)
        entered = Trajectory(request, table, x, low_res, state.stage_index, state.row)
        entered.memory = memory
        return entered

    def _enter_next(self, passed: Trajectory, pixels: Tensor) -> Trajectory:
        """Within one stage x goes on as it is, from an encoding to the steps back."""
        request, index = passed.request, passed.stage_index + 1
        plan = request.plans[index]
        if plan.stage == passed.plan.stage:
            return Trajectory(request, self._table(plan), passed.x, None, index)
        # The next stage gets what the official scripts hand over: the truncated 8-bit image.
        table, low_res = self._table(plan), from_uint8(pixels)
        x = self.stages[plan.stage].enlarge(request, plan, table, low_res)
        return Trajectory(request, table, x, low_res, index)

    def _advance(
        self, moved: list[Trajectory], failed: dict[str, Exception]
    ) -> tuple[dict[tuple[str, int], Tensor], list[Passed]]:
        """The previews of images that moved, and those that passed a stage, which are sent on to the next or leave."""
        previews, passed = {}, []
        for each in moved:
            try:
                if each.request.wants_previews and each.pred_x0 is not None:
                    previews[each.key] = download(to_uint8(each.pred_x0))
                if each.row == len(each.table):
                    passed.append(self._pass_on(each))
            except torch.AcceleratorError:
                raise  # as in a step
            except Exception as error:  # noqa: BLE001 - whatever an image breaks must stay its job's
                failed[each.request.job_id] = _light(error)
        return previews, passed

    def _pass_on(self, passed: Trajectory) -> Passed:
        request, pixels = passed.request, to_uint8(passed.x)
        is_finite = download(passed.x.isfinite().all())
        if passed.stage_index + 1 < len(request.plans):
            self._live[passed.key] = self._enter_next(passed, pixels)
            return Passed(passed, is_finite, None)
        finished = Finished(request, passed.x, download(pixels))
        self._leave(passed.key)
        return Passed(passed, is_finite, finished)

    def _leave(self, key: tuple[str, int]) -> None:
        del self._live[key]
        self.scheduler.leave(key)


def _light(error: Exception) -> Exception:
    """The error without its traceback, whose frames hold what a step takes of the device's memory."""
    return error.with_traceback(None)
