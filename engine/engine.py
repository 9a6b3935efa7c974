"""Continuous batching at the level of a step: an image joins the next step, and a finished one leaves at once."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffusion.pixels import from_uint8, to_uint8
from diffusion.tables import SamplerTable
from diffusion.transfer import download, upload
from engine.costs import StepCosts
from engine.errors import DuplicateImageError, UnfitStateError
from engine.scheduler import Scheduler
from engine.stage import Stage
from engine.step_times import is_asynchronous, timer_on
from engine.steps import Finished, LaunchedStep, Passed, StepReport
from engine.trajectory import ImageRequest, ImageState, StagePlan, Trajectory


class Engine:
    """Batches the steps of unrelated images; owns no thread and no I/O.

    The scheduler chooses the images of a step by `costs`, in which the caller records the times of retired steps.

    On an asynchronous device the next step is launched while the one before is computed, so that the device does not
    wait for the host to prepare or report a step. depth: the largest number of steps in flight. For callers of the
    engine, a step has been taken when it is retired.
    """

    def __init__(self, stages: Mapping[str, Stage], max_rows: int, depth: int | None = None) -> None:
        self.stages, self.max_rows = stages, max_rows
        self.depth = depth or (2 if any(is_asynchronous(stage.device) for stage in stages.values()) else 1)
        self.host_seconds = 0.0  # time of the host to launch the last step
        self.last_launch = ("none", 0)  # stage and rows, for the thread that detects a hanging device
        self._launched: deque[LaunchedStep] = deque()  # not retired yet, the oldest first
        self.costs = StepCosts({key: stage.row_shapes["network"] for key, stage in stages.items()})
        self.scheduler: Scheduler[tuple[str, int]] = Scheduler(self.costs, max_rows)
        self._live: dict[tuple[str, int], Trajectory] = {}  # in order of arrival

    @property
    def busy(self) -> bool:
        return bool(self._live or self._launched)

    @property
    def seconds_ahead(self) -> float:
        """Estimated seconds of the device's work, counted from the end of the step that was retired last."""
        return sum(each.expected_seconds for each in self._launched if not each.timer.is_done)

    @property
    def rows_in_flight(self) -> int:
        return len(self._live)

    @property
    def row_shapes(self) -> tuple[int, ...]:
        """Row counts that steps of all stages may be padded to, ascending; fewer where memory did not suffice."""
        return tuple(sorted(set.intersection(*(set(stage.row_shapes["network"]) for stage in self.stages.values()))))

    def add(self, request: ImageRequest, state: ImageState | None = None) -> None:
        """Let an image join the next step of its first stage, or resume from a state that `states` returned.

        Raises: DuplicateImageError; UnknownOfferError for a plan for which a stage has no table; UnfitStateError;
        torch.OutOfMemoryError if memory does not suffice for the image. After an error the image is not in the engine.
        """
        key = (request.job_id, request.index)
        if key in self._live or any(key == each.key for step in self._launched for each in step.before):
            raise DuplicateImageError(request.job_id, request.index)
        self.check(request)
        entered = self._live[key] = self._enter(request) if state is None else self._resume(request, state)
        ahead = [(plan.stage, len(self._table(plan))) for plan in request.plans[entered.stage_index :]]
        ahead[0] = entered.plan.stage, len(entered.table) - entered.row
        self.scheduler.enter(key, request.job_id, request.priority, ahead)

    def states(self, job_id: str) -> dict[int, ImageState]:
        """The states of a job's images in the engine, by index; valid until the next step."""
        here = [*self._live.values(), *(each for step in reversed(self._launched) for each in step.before)]
        return {each.request.index: each.state for each in here if each.request.job_id == job_id}

    def check(self, request: ImageRequest) -> None:
        """Check an image before it enters, because an error in a later stage would fail its neighbours too.

        Raises: UnknownOfferError for a plan for which a stage has no table.
        """
        for plan in request.plans:
            self._table(plan)

    def abort(self, job_id: str) -> bool:
        """Drop all images of a job; False if there were none: a lost race, not an error."""
        was_here = bool(self.states(job_id))
        for key in [key for key in self._live if key[0] == job_id]:
            self._leave(key)
        for step in self._launched:
            step.drop(job_id)
        return was_here

    def step(self) -> StepReport | None:
        """Take one step of one stage, and report it; None if there is no image. Raises: the errors of `iterate`."""
        while (report := self.iterate()) is None and self._launched:
            pass
        return report

    def iterate(self, *, ahead: bool = True) -> StepReport | None:
        """Launch one more step; retire the oldest if `depth` steps are in flight. None if no step was retired.

        ahead: whether a step may be launched before the previous one is retired, up to `depth` steps in flight.
        Each call launches one step at most, so that the caller can act before every launch.
        A batch that fails is bisected, so that one bad row fails only its own job and the others move on. A batch for
        which memory does not suffice is bisected too, and the stage uses smaller batches from then on.
        Raises: torch.AcceleratorError if the device is lost; the process must end.
        """
        depth = self.depth if ahead else 1
        has_launched = len(self._launched) < depth and self._launch()
        if not self._launched or (has_launched and len(self._launched) < depth):
            return None
        report = self._launched.popleft().retire()
        for job_id in report.failed:
            self.abort(job_id)
        return report

    def _launch(self) -> bool:
        """Launch one more step; return False if no image has one to take."""
        started = time.perf_counter()
        choice = self.scheduler.choose()
        if choice is None:
            return False
        batch, stage = [self._live[key] for key in choice.keys], self.stages[choice.stage]
        self.last_launch = choice.stage, len(batch)
        expected, shapes = self.costs.seconds(choice.stage, choice.row_shape), dict(stage.row_shapes)
        failed: dict[str, Exception] = {}
        timer = timer_on(stage.device)
        moved = self._take(stage, batch, failed)
        lowered = {part: left for part, left in stage.row_shapes.items() if left != shapes[part]}
        if lowered:
            self.costs.keep(choice.stage, stage.row_shapes["network"])
        before = [self._live[each.key] for each in moved]
        is_whole = not failed and not lowered
        self._live |= {each.key: each for each in moved}
        self.scheduler.moved(each.key for each in moved)
        previews, passed = self._advance(moved, failed)
        timer.end()
        step = LaunchedStep(
            stage=choice.stage,
            row_shape=choice.row_shape,
            num_rows=len(moved),
            is_whole=is_whole,
            expected_seconds=expected,
            timer=timer,
            before=before,
            moved=moved,
            lowered=lowered,
            previews=previews,
            passed=passed,
            failed={},
        )
        self._launched.append(step)
        for job_id in failed:
            self.abort(job_id)
        step.failed = failed  # set after `abort`, which would remove these jobs from the report
        self.host_seconds = time.perf_counter() - started
        return True

    def _take(self, stage: Stage, batch: list[Trajectory], failed: dict[str, Exception]) -> list[Trajectory]:
        """The batch after a step, without the rows that failed."""
        try:
            return stage.step(batch)
        except torch.AcceleratorError:
            raise  # every later call fails too, so a process that went on would fail all jobs of the queue
        except Exception as error:  # noqa: BLE001 - an error of one row must not affect others
            if len(batch) == 1:
                failed[batch[0].request.job_id] = _light(error)
                return []
            lacked_memory = isinstance(error, torch.OutOfMemoryError)
        # outside the handler, so that the exception and the memory that it refers to are released
        middle = len(batch) // 2
        moved = self._take(stage, batch[:middle], failed) + self._take(stage, batch[middle:], failed)
        if lacked_memory and len(moved) == len(batch):  # otherwise the number of rows was not the cause
            stage.give_up(len(batch))
        return moved

    def _table(self, plan: StagePlan) -> SamplerTable:
        return self.stages[plan.stage].table(plan)

    def _enter(self, request: ImageRequest) -> Trajectory:
        plan, table = request.plans[0], self._table(request.plans[0])
        return Trajectory(request, table, *self.stages[plan.stage].begin(request, plan, table))

    def _resume(self, request: ImageRequest, state: ImageState) -> Trajectory:
        if not 0 <= state.stage_index < len(request.plans):
            reason = f"cannot resume in stage {state.stage_index} of {len(request.plans)}"
            raise UnfitStateError(request.job_id, request.index, reason)
        plan = request.plans[state.stage_index]
        table, stage = self._table(plan), self.stages[plan.stage]
        if not 0 <= state.row < len(table) or not state.x.shape == state.memory.shape == stage.shape:
            reason = f"cannot resume at row {state.row} of {plan.stage} from a state of shape {list(state.x.shape)}"
            raise UnfitStateError(request.job_id, request.index, reason)
        x, memory = upload(state.x, stage.device), upload(state.memory, stage.device)
        low_res = None if state.low_res is None else upload(state.low_res, stage.device)
        entered = Trajectory(request, table, x, low_res, state.stage_index, state.row)
        entered.memory = memory
        return entered

    def _enter_next(self, passed: Trajectory, pixels: Tensor) -> Trajectory:
        """Enter the next plan. Within one stage, from encoding to decoding, x is kept as it is."""
        request, index = passed.request, passed.stage_index + 1
        plan = request.plans[index]
        if plan.stage == passed.plan.stage:
            return Trajectory(request, self._table(plan), passed.x, None, index)
        # As in the official scripts, the next stage gets the truncated 8-bit image.
        table, low_res = self._table(plan), from_uint8(pixels)
        x = self.stages[plan.stage].enlarge(request, plan, table, low_res)
        return Trajectory(request, table, x, low_res, index)

    def _advance(
        self, moved: list[Trajectory], failed: dict[str, Exception]
    ) -> tuple[dict[tuple[str, int], Tensor], list[Passed]]:
        """Send images that passed a stage to the next one or out; return all previews, and the images that passed."""
        previews, passed = {}, []
        for each in moved:
            try:
                if each.request.wants_previews and each.pred_x0 is not None:
                    previews[each.key] = download(to_uint8(each.pred_x0))
                if each.row == len(each.table):
                    passed.append(self._pass_on(each))
            except torch.AcceleratorError:
                raise  # as in `_take`
            except Exception as error:  # noqa: BLE001 - an error of one image must affect only its job
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


def run_to_end(
    engine: Engine, requests: Sequence[ImageRequest], on_step: Callable[[int], None] = lambda rows: None
) -> list[Finished]:
    """Run images on an engine that has no others; return them in the order of the requests.

    on_step gets the number of rows of each step. Raises: the exception of a step that could not be computed.
    """
    for request in requests:
        engine.add(request)
    done: dict[int, Finished] = {}
    while (report := engine.step()) is not None:
        for error in report.failed.values():
            raise error
        done |= {each.request.index: each for each in report.finished}
        on_step(len(report.moved))
    return [done[request.index] for request in requests]


def _light(error: Exception) -> Exception:
    """The error without its traceback, whose frames would keep a step's tensors in the device's memory."""
    return error.with_traceback(None)
