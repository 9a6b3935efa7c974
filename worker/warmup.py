"""Measures the time of a step at each row shape, for the first choices of the scheduler and the first estimates."""

import math
from collections.abc import Collection

import torch

from engine.engine import Engine
from engine.stage import Stage
from engine.step_times import timer_on

LAUNCHING = 2.0  # a step that takes less than this multiple of the smallest shape's time mostly launches operations
REPEATS = 3  # steps of which the fastest counts, where shapes are compared


def measure_steps(engine: Engine, keys: Collection[str] | None = None) -> None:
    """Time a step of every stage, or of those with these keys, at every shape, and choose which shapes have one lane.

    The shapes were run before, so no first call is timed. A whole step takes more memory than the network by itself.
    Shapes for which memory does not suffice are given up.
    Raises: torch.OutOfMemoryError if it does not suffice for the smallest one.
    """
    for key in engine.stages if keys is None else keys:
        stage = engine.stages[key]
        smallest, *_ = stage.row_shapes["network"]
        stage.rehearse(smallest)  # makes tables and everything else that only a first step waits for
        if stage.networks.lanes.count > 1 and not stage.networks.is_wide:
            stage.networks.one_lane_rows = _rows_mostly_launched(stage)
        for rows in stage.row_shapes["network"]:
            try:
                seconds = _seconds(stage, rows, 1)
            except torch.OutOfMemoryError:
                if rows == smallest:
                    raise
                stage.give_up(rows)
            if rows not in stage.row_shapes["network"]:
                break
            engine.costs.note(key, rows, seconds)
        engine.costs.keep(key, stage.row_shapes["network"])


def _rows_mostly_launched(stage: Stage) -> int:
    """The largest row count whose step takes most of its time to launch operations.

    Python launches one operation at a time, so lanes that do little else wait for each other. Only times of one lane
    are compared, because those of several depend on what else the machine does during a start.
    """
    largest, limit = 0, math.inf
    for rows in stage.row_shapes["network"]:
        stage.networks.one_lane_rows = rows
        try:
            seconds = _seconds(stage, rows, REPEATS)
        except torch.OutOfMemoryError:
            break  # `measure_steps` gives these rows up
        limit = min(limit, LAUNCHING * seconds)
        if seconds >= limit:
            break
        largest = rows
    return largest


def _seconds(stage: Stage, rows: int, repeats: int) -> float:
    """The seconds of the fastest of some steps. Raises: torch.OutOfMemoryError."""
    measured = []
    for _ in range(repeats):
        timer = timer_on(stage.device)
        stage.rehearse(rows)
        timer.end()
        measured.append(timer.wait())
    return min(measured)
