"""Loading pipelines by their names: found, chosen, reckoned, only then loaded, and checked in the end."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engine.memory import free_bytes, shortage
from engine.selfcheck import check_stack
from models.checkpoints.network_file import WeightsError
from models.checkpoints.presets import OFFICIAL_FOLDER
from models.plan import MANIFEST, StackPlan, official_stacks, read_stack
from models.stack import Stack, load_plan

OnDoubt = Callable[[str], None]
"""Told each doubt about weights in one line (docs/self-check.md)."""

SETTING = "ADM_PIPELINES"


class UnknownPipelineError(WeightsError):
    """No stack has a pipeline of this name."""


def load_stacks(
    weights: Path,
    names: Sequence[str],
    max_rows: int,
    device: torch.device,
    on_doubt: OnDoubt | None = None,
    *,
    setting: str = SETTING,
) -> list[Stack]:
    """The stacks of a weights folder that have these pipelines; networks that several of them share are loaded once.

    on_doubt is told what the self-check finds; None, for those who will compute nothing, leaves the check out. setting
    is what named the pipelines, for errors.
    Raises: WeightsError, one line, for an unknown pipeline, a missing or wrong file, and before anything is loaded
    where the device has too little memory.
    """
    return load_plans(choose(names, weights, setting), max_rows, device, on_doubt, setting=setting)


def load_plans(
    plans: Sequence[StackPlan],
    max_rows: int,
    device: torch.device,
    on_doubt: OnDoubt | None = None,
    *,
    setting: str = SETTING,
) -> list[Stack]:
    """The stacks of these plans, as load_stacks."""
    free = free_bytes(device)
    if free is not None and (line := shortage(plans, max_rows, free)):
        names = ", ".join(name for plan in plans for name in plan.pipelines)
        raise WeightsError(f"{setting}: {names} {line} on {device}")
    loaded: dict[Path, nn.Module] = {}
    stacks = [load_plan(plan, device, loaded) for plan in plans]
    if on_doubt is not None:
        for line in (line for stack in stacks for line in check_stack(stack)):
            on_doubt(line)
    return stacks


class Found(NamedTuple):
    """The stacks of a folder: those that can be read, and why another's pipelines, or its folder's name, cannot."""

    plans: list[StackPlan]
    damaged: dict[str, WeightsError]


def find_plans(weights: Path) -> Found:
    """Every stack of a weights folder, and what could be made of official checkpoints."""
    plans: list[StackPlan] = []
    damaged: dict[str, WeightsError] = {}
    for path in sorted(weights.glob(f"*/{MANIFEST}")):
        try:
            plans.append(read_stack(path.parent))
        except WeightsError as error:
            damaged |= dict.fromkeys(_names(path), error)
    return Found([*plans, *official_stacks(weights / OFFICIAL_FOLDER)], damaged)


def _names(manifest: Path) -> list[str]:
    """The pipelines of a stack that cannot be read, as far as its manifest can."""
    try:
        return list(json.loads(manifest.read_bytes())["pipelines"])
    except (OSError, ValueError, KeyError, TypeError):
        return [manifest.parent.name]


def choose(names: Sequence[str], weights: Path, setting: str = SETTING) -> list[StackPlan]:
    """The stacks of a weights folder that have these pipelines, without what none of them needs.

    Raises: WeightsError.
    """
    weights = weights.absolute()  # the setting may be relative to a working folder that an error would not tell
    plans, damaged = find_plans(weights)
    known = {name: plan for plan in plans for name in plan.pipelines}
    for name in names:
        if name in damaged:
            raise damaged[name]
        if name not in known:
            there = ", ".join(sorted(known))
            where = f"no stack of {weights} (ADM_WEIGHTS)"
            raise UnknownPipelineError(f"{setting}: {where} has a pipeline {name!r}; there are {there}")
        for file in known[name].only([name]).files:
            if not file.path.exists():
                missing = f"needs {file.path.name}, which is not in {file.path.parent} (ADM_WEIGHTS)"
                raise WeightsError(f"{setting}: {name!r} {missing}; adm models fetch {file.path.stem} brings it")
    return [plan.only(names) for plan in plans if plan.pipelines.keys() & set(names)]
