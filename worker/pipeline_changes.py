"""Loading and unloading of pipelines in a running worker (decision 32)."""

import gc
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import structlog
import torch
from redis.client import Redis
from redis.exceptions import RedisError
from torch import nn

from engine.loading import check_memory, choose, load_plans
from jobs.contract.changes import ChangeStatus, PipelineChange, WorkerChange
from jobs.queue.changes import Changes
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.stack import Stack, file_hash
from models.stack_plan import StackPlan, check_fit
from worker.assembling import assemble, warn_of_doubt
from worker.error_texts import error_text
from worker.loaded_pipelines import LoadedPipelines

log = structlog.get_logger("worker.pipeline_changes")

COMMAND = "adm models load"  # named by error texts as the origin of a pipeline's name


class RefusedChangeError(Exception):
    """A change that this worker refuses; the message is one line with the reason."""


EXPECTED = (RefusedChangeError, WeightsError, OSError)  # the text of `reason` names a remedy


def reason(error: Exception) -> str:
    """Why a change was not made, in one line."""
    if isinstance(error, WeightsError):
        return error_text(error, COMMAND)
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


def wanted_pipelines(loaded: LoadedPipelines, change: PipelineChange) -> tuple[str, ...]:
    """The pipelines that a worker serves after a change. Raises: RefusedChangeError."""
    names = tuple(loaded.pipelines)
    if change.action == "load":
        return names if change.model in names else (*names, change.model)
    if change.model not in names:
        raise RefusedChangeError(f"it does not serve {change.model!r}; it serves {', '.join(names)}")
    if len(names) == 1:
        raise RefusedChangeError(f"{change.model!r} is its only pipeline; load another one first, or stop the worker")
    return tuple(each for each in names if each != change.model)


def check(loaded: LoadedPipelines, settings: Settings, change: PipelineChange) -> None:
    """Check, before anything is loaded, whether a change can be made.

    Raises: RefusedChangeError; WeightsError for an unknown pipeline, a missing or changed file, or too little memory.
    """
    if len(wanted_pipelines(loaded, change)) > len(loaded.pipelines):
        plan = _plan_of(loaded, settings, change.model)
        check_fit(plan)
        check_memory([plan], settings.max_rows, loaded.device, loaded=_loaded_networks(loaded, plan))


def make(loaded: LoadedPipelines, settings: Settings, change: PipelineChange) -> LoadedPipelines:
    """Load or unload a pipeline. The others are not changed, and serve again after an error.

    Raises: the errors of check; torch.OutOfMemoryError.
    """
    names = wanted_pipelines(loaded, change)
    stacks = {each.stack.name: _only(each.stack, names) for name, each in loaded.pipelines.items() if name in names}
    if len(names) > len(loaded.pipelines):
        plan = _plan_of(loaded, settings, change.model)
        is_new = plan.name not in stacks
        (stacks[plan.name],) = load_plans(
            [plan],
            settings.max_rows,
            loaded.device,
            warn_of_doubt if is_new else None,
            loaded=_loaded_networks(loaded, plan),
        )
    return assemble(settings, loaded.device, loaded.info.name, names, list(stacks.values()), before=loaded)


def free_memory(device: torch.device) -> None:
    """Free the memory of unloaded pipelines, and exempt the present ones from garbage collection."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _only(stack: Stack, names: Collection[str]) -> Stack:
    """The stack as it would be loaded for these pipelines alone: without its upsampler if none of them needs it."""
    pipelines = {name: spec for name, spec in stack.pipelines.items() if name in names}
    upsampler = stack.upsampler if any(spec.upsampling for spec in pipelines.values()) else None
    return replace(stack, pipelines=pipelines, upsampler=upsampler)


def _plan_of(loaded: LoadedPipelines, settings: Settings, name: str) -> StackPlan:
    """The plan of the stack that has a pipeline; it includes the stack's other pipelines that are loaded."""
    (plan,) = choose([name], settings.weights)
    beside = [each for each, pipeline in loaded.pipelines.items() if pipeline.stack.name == plan.name]
    (plan,) = choose([*beside, name], settings.weights)
    return plan


def _loaded_networks(loaded: LoadedPipelines, plan: StackPlan) -> dict[Path, nn.Module]:
    """The networks of a stack that are loaded, by file. Raises: RefusedChangeError if a file has changed."""
    stack = next((each.stack for each in loaded.pipelines.values() if each.stack.name == plan.name), None)
    if stack is None:
        return {}
    networks: dict[Path, nn.Module] = {}
    pairs = (plan.base, stack.base), (plan.classifier, stack.classifier), (plan.upsampler, stack.upsampler)
    for file, network in pairs:
        if file is not None and network is not None:
            if file_hash(file.path) != network.model_hash:
                raise RefusedChangeError(f"{file.path} has changed since this worker loaded it; restart the worker")
            networks[file.path] = network.network
    return networks


class PipelineChanger:
    """Reads the changes that are requested of one worker, and reports their outcome. For one thread at a time."""

    def __init__(self, redis: Redis, settings: Settings, loaded: LoadedPipelines) -> None:
        self._changes, self._settings, self.loaded = Changes(redis), settings, loaded
        self._worker = loaded.info.name

    def refuse_left_over(self) -> None:
        """Refuse changes that were requested of an earlier process with this name."""
        for change in self._changes.waiting(self._worker):
            self._report(change, ChangeStatus.REFUSED, "the worker was restarted meanwhile; repeat the request")

    def look(self) -> PipelineChange | None:
        """The next change that can be made; others are refused. None without one, and while Redis is unavailable."""
        try:
            for change in self._changes.waiting(self._worker):
                if change.action == "load" and change.model in self.loaded.pipelines:
                    self._report(change, ChangeStatus.DONE, "served it already")
                    continue
                try:
                    check(self.loaded, self._settings, change)
                except EXPECTED as error:
                    self._report(change, ChangeStatus.REFUSED, reason(error))
                else:
                    self._report(change, ChangeStatus.DRAINING)
                    return change
        except RedisError as error:
            log.warning("changes_not_read", error=str(error))
        return None

    def change(self, change: PipelineChange) -> bool:
        """Make a change while the worker has no job; False if it failed and the loaded pipelines are as before."""
        self._report(change, ChangeStatus.CHANGING)
        try:
            self.loaded = make(self.loaded, self._settings, change)
        except torch.AcceleratorError:
            raise  # the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - an error of a new stack must not end a worker that serves
            self._report(change, ChangeStatus.REFUSED, reason(error))
            return False
        return True

    def done(self, change: PipelineChange) -> None:
        """Report a change as made; call this after the worker has announced its new pipelines."""
        self._report(change, ChangeStatus.DONE, f"serves {', '.join(self.loaded.pipelines)}")

    def _report(self, change: PipelineChange, status: ChangeStatus, detail: str = "") -> None:
        log.info("pipeline_change", action=change.action, pipeline=change.model, status=status, detail=detail)
        try:
            self._changes.report(change.id, WorkerChange(worker=self._worker, status=status, detail=detail))
        except RedisError as error:  # the change stays in this worker's list, so a later look reports it
            log.warning("change_not_reported", error=str(error))
