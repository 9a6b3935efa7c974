"""Measures the time of a step at each row shape, for the first choices of the scheduler and the first estimates."""

from collections.abc import Collection

import torch

from engine.engine import Engine
from engine.stage import Stage
from engine.step_times import timer_on

REPEATS = 3  # steps of which the fastest counts, where numbers of lanes are compared


def measure_steps(engine: Engine, keys: Collection[str] | None = None) -> None:
    """Time a step of every stage, or of those with these keys, at every shape, and choose the fastest number of lanes.

    The shapes were run before, so no first call is timed. A whole step takes more memory than the network by itself.
    Shapes for which memory does not suffice are given up.
    Raises: torch.OutOfMemoryError if it does not suffice for the smallest one.
    """
    for key in engine.stages if keys is None else keys:
        stage = engine.stages[key]
        stage.rehearse(stage.row_shapes["network"][0])  # makes tables and all else that only a first step waits for
        lanes = 1
        for rows in stage.row_shapes["network"]:
            try:
                lanes, seconds = _choose_lanes(stage, rows, lanes)
            except torch.OutOfMemoryError:
                if rows == stage.row_shapes["network"][0]:
                    raise
                stage.give_up(rows)
            if rows not in stage.row_shapes["network"]:
                break
            engine.costs.note(key, rows, seconds)
        engine.costs.keep(key, stage.row_shapes["network"])


def _choose_lanes(stage: Stage, rows: int, lanes: int) -> tuple[int, float]:
    """Double the number of lanes, beginning at that of the next smaller shape, as long as a step becomes faster.

    Returns the number and the seconds of a step.
    """
    networks = stage.networks
    most = 1 if networks.is_wide else networks.lanes.count
    seconds = _seconds(stage, rows, lanes, 1 if lanes == most else REPEATS)
    while lanes < most:
        more = min(2 * lanes, most)
        faster = _seconds(stage, rows, more, REPEATS)
        if faster >= seconds:
            break
        lanes, seconds = more, faster
    networks.lane_counts[rows] = lanes
    return lanes, seconds


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
