"""Which stacks a worker loads for ADM_PIPELINES: found, chosen, reckoned, and only then loaded."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine.memory import free_bytes, shortage
from models.checkpoint import WeightsError
from models.presets import OFFICIAL_FOLDER
from models.stack import MANIFEST, Stack, StackPlan, load_plan, official_stacks, read_stack


def load_stacks(weights: Path, names: Sequence[str], max_rows: int, device: torch.device) -> list[Stack]:
    """The stacks that have these pipelines; networks that several of them share are loaded once.

    Raises: WeightsError, one line, for an unknown pipeline, a missing or wrong file, and before anything is loaded
    where the device has too little memory.
    """
    plans = choose(names, weights)
    free = free_bytes(device)
    if free is not None and (line := shortage(plans, max_rows, free)):
        raise WeightsError(f"ADM_PIPELINES: {', '.join(names)} {line} on {device}")
    loaded: dict[Path, nn.Module] = {}
    return [load_plan(plan, device, loaded) for plan in plans]


def find_plans(weights: Path) -> list[StackPlan]:
    """Every stack of a weights folder, and what could be made of official checkpoints. Raises: WeightsError."""
    folders = sorted(path.parent for path in weights.glob(f"*/{MANIFEST}"))
    return [*map(read_stack, folders), *official_stacks(weights / OFFICIAL_FOLDER)]


def choose(names: Sequence[str], weights: Path) -> list[StackPlan]:
    """The stacks of a weights folder that have these pipelines, without what none of them needs.

    Raises: WeightsError.
    """
    plans = find_plans(weights)
    known = {name: plan for plan in plans for name in plan.pipelines}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known))
            raise WeightsError(f"ADM_PIPELINES: no stack of {weights} has a pipeline {name!r}; there are {there}")
        for file in known[name].only([name]).files:
            if not file.path.exists():
                missing = f"needs {file.path.name}, which is not in {file.path.parent}"
                raise WeightsError(f"ADM_PIPELINES: {name!r} {missing}; adm models fetch {file.path.stem} brings it")
    return [plan.only(names) for plan in plans if plan.pipelines.keys() & set(names)]
