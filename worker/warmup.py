"""Measures the time of a step at each row shape, for the first choices of the scheduler and the first estimates."""

from collections.abc import Collection

import torch

from engine.engine import Engine
from engine.stage import Stage
from engine.step_times import timer_on

LAUNCHING = 2.0  # below so many times the smallest shape's time, a step is mostly the launching of operations
REPEATS = 3  # steps of which the fastest counts, where shapes are compared


def measure_steps(engine: Engine, keys: Collection[str] | None = None) -> None:
    """Time a step of every stage, or of those with these keys, at every shape, and choose the shape's number of lanes.

    The shapes were run before, so no first call is timed. A whole step takes more memory than the network by itself.
    Shapes for which memory does not suffice are given up.
    Raises: torch.OutOfMemoryError if it does not suffice for the smallest one.
    """
    for key in engine.stages if keys is None else keys:
        stage = engine.stages[key]
        smallest, *_ = shapes = stage.row_shapes["network"]
        stage.rehearse(smallest)  # makes tables and all else that only a first step waits for
        limit = _launching_seconds(stage, smallest)
        for rows in shapes:
            try:
                seconds = _seconds(stage, rows, 1, REPEATS) if limit else 0.0
                if seconds >= limit:
                    limit, seconds = 0.0, _seconds(stage, rows, stage.networks.lanes.count, 1)
            except torch.OutOfMemoryError:
                if rows == smallest:
                    raise
                stage.give_up(rows)
            if rows not in stage.row_shapes["network"]:
                break
            engine.costs.note(key, rows, seconds)
        engine.costs.keep(key, stage.row_shapes["network"])


def _launching_seconds(stage: Stage, smallest: int) -> float:
    """The seconds on one lane below which a step is mostly the launching of operations; 0 where that has no effect.

    Python launches one operation at a time, so lanes that do little else wait for each other. Only times of one lane
    are compared, because those of several depend on what else the machine does during a start.
    """
    networks = stage.networks
    return 0.0 if networks.is_wide or networks.lanes.count == 1 else LAUNCHING * _seconds(stage, smallest, 1, REPEATS)


def _seconds(stage: Stage, rows: int, lanes: int, repeats: int) -> float:
    """The seconds of the fastest of some steps that so many lanes compute. Raises: torch.OutOfMemoryError."""
    stage.networks.lane_counts[rows] = lanes
    measured = []
    for _ in range(repeats):
        timer = timer_on(stage.device)
        stage.rehearse(rows)
        timer.end()
        measured.append(timer.wait())
    return min(measured)
