"""Loads pipelines by name: finds their stacks, compares their memory with the free memory, loads and checks them."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from engine.selfcheck import check_stack
from models.checkpoints.network_file import WeightsError
from models.checkpoints.presets import OFFICIAL_FOLDER
from models.memory import Shortage, free_bytes, serving_bytes, shortage
from models.stack import Stack, load_plan
from models.stack_plan import MANIFEST, StackPlan, official_stacks, read_stack

OnDoubt = Callable[[str], None]
"""Called with each doubt about weights, one line of text (docs/self-check.md)."""

NOTHING_LOADED: Mapping[Path, nn.Module] = MappingProxyType({})


class UnknownPipelineError(WeightsError):
    """No stack of a weights folder has a pipeline of this name."""

    def __init__(self, name: str, weights: Path, known: Sequence[str]) -> None:
        super().__init__(str(weights), f"no stack has a pipeline {name!r}; there are {', '.join(known)}")
        self.name, self.weights, self.known = name, weights, tuple(known)


class MissingFileError(WeightsError):
    """A pipeline needs a file that is not there."""

    def __init__(self, pipeline: str, path: Path) -> None:
        super().__init__(str(path), f"there is no such file, which the pipeline {pipeline!r} needs")
        self.pipeline, self.path = pipeline, path


class ShortageError(WeightsError):
    """A device has too little memory for these pipelines."""

    def __init__(self, pipelines: Sequence[str], device: torch.device, shortage: Shortage) -> None:
        missing = shortage.needed_bytes - shortage.free_bytes
        super().__init__(", ".join(pipelines), f"{missing:,} bytes of memory are missing on {device}")
        self.pipelines, self.device, self.shortage = tuple(pipelines), device, shortage


def load_stacks(
    weights: Path,
    names: Sequence[str],
    max_rows: int,
    device: torch.device,
    on_doubt: OnDoubt | None = None,
) -> list[Stack]:
    """The stacks of a weights folder that have these pipelines; a network shared by several of them is loaded once.

    on_doubt gets the findings of the self-check; None skips the check, for callers that compute nothing.
    Raises: UnknownPipelineError, MissingFileError; ShortageError before anything is loaded; other WeightsErrors.
    """
    return load_plans(choose(names, weights), max_rows, device, on_doubt)


def load_plans(
    plans: Sequence[StackPlan],
    max_rows: int,
    device: torch.device,
    on_doubt: OnDoubt | None = None,
    *,
    loaded: Mapping[Path, nn.Module] = NOTHING_LOADED,
) -> list[Stack]:
    """Like load_stacks, for given plans. loaded: networks that are on the device already, by file."""
    check_memory(plans, max_rows, device, loaded=loaded)
    networks = dict(loaded)
    stacks = [load_plan(plan, device, networks) for plan in plans]
    if on_doubt is not None:
        for line in (line for stack in stacks for line in check_stack(stack)):
            on_doubt(line)
    return stacks


def check_memory(
    plans: Sequence[StackPlan], max_rows: int, device: torch.device, *, loaded: Collection[Path] = ()
) -> None:
    """Raises: ShortageError if the device lacks memory for those files of the plans that are not loaded yet."""
    free = free_bytes(device)
    if free is None:
        return
    there = {file.path: serving_bytes(file.config) for plan in plans for file in plan.files if file.path in loaded}
    if lack := shortage(plans, max_rows, free + sum(there.values())):
        raise ShortageError([name for plan in plans for name in plan.pipelines], device, lack)


class Found(NamedTuple):
    """The readable stacks of a folder; errors of the others, by pipeline (by folder if its pipelines are unknown)."""

    plans: list[StackPlan]
    damaged: dict[str, WeightsError]


def find_plans(weights: Path) -> Found:
    """Find every stack of a weights folder, and every stack that its official checkpoints can form."""
    plans: list[StackPlan] = []
    damaged: dict[str, WeightsError] = {}
    for path in sorted(weights.glob(f"*/{MANIFEST}")):
        try:
            plans.append(read_stack(path.parent))
        except WeightsError as error:
            damaged |= dict.fromkeys(_names(path), error)
    return Found([*plans, *official_stacks(weights / OFFICIAL_FOLDER)], damaged)


def _names(manifest: Path) -> list[str]:
    """The pipelines of an unreadable stack, if its manifest can be read."""
    try:
        return list(json.loads(manifest.read_bytes())["pipelines"])
    except (OSError, ValueError, KeyError, TypeError):
        return [manifest.parent.name]


def choose(names: Sequence[str], weights: Path) -> list[StackPlan]:
    """The plans of the stacks that have these pipelines, without networks that none of them needs.

    Raises: UnknownPipelineError, MissingFileError; another WeightsError for a stack that cannot be read.
    """
    weights = weights.absolute()  # absolute, so that errors do not depend on the working folder
    plans, damaged = find_plans(weights)
    known = {name: plan for plan in plans for name in plan.pipelines}
    for name in names:
        if name in damaged:
            raise damaged[name]
        if name not in known:
            raise UnknownPipelineError(name, weights, sorted(known))
        for file in known[name].only([name]).files:
            if not file.path.exists():
                raise MissingFileError(name, file.path)
    return [plan.only(names) for plan in plans if plan.pipelines.keys() & set(names)]
