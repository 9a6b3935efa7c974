"""Finds cases by walking a folder and decides each by its kind."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from tests.golden_runner import evaluator, losses, networks, presets, schedules, steps, trajectories
from tests.golden_runner.case import Case, CaseError, compare

KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "component": networks.component,
    "components": networks.component,
    "unet": networks.unet,
    "classifier": networks.classifier,
    "schedule": schedules.schedule,
    "single_step": steps.single_step,
    "trajectory": trajectories.trajectory,
    "losses": losses.losses,
    "evaluator": evaluator.evaluator,
}


def find_cases(folder: Path) -> list[Path]:
    """Every JSON file under the folder, at any depth."""
    return sorted(folder.rglob("*.json"))


def run_case(path: Path) -> list[str]:
    """The faults of a case, one line each; empty if it passes."""
    try:
        if presets.is_presets(path, body := json.loads(path.read_text())):
            return presets.problems(path, body)
        case = Case.load(path)
        if case.kind not in KINDS:
            raise CaseError(f"unknown kind {case.kind!r}; known are {', '.join(sorted(KINDS))}")
        got = KINDS[case.kind](case)
        problems = compare(case, got)
        case.finish()
    except (CaseError, json.JSONDecodeError, SafetensorError) as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001 - one broken case must not hide the others
        return [f"{type(error).__name__}: {error}"]
    return problems
