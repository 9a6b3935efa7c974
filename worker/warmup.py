"""Measures the time of a step at each row shape, for the first choices of the scheduler and the first estimates."""

from collections.abc import Collection

import torch

from engine.engine import Engine
from engine.step_times import timer_on


def measure_steps(engine: Engine, keys: Collection[str] | None = None) -> None:
    """Time one step of every stage, or of those with these keys, at every shape.

    The shapes were run before, so no first call is timed. A whole step takes more memory than the network by itself.
    Shapes for which memory does not suffice are given up.
    Raises: torch.OutOfMemoryError if it does not suffice for the smallest one.
    """
    for key in engine.stages if keys is None else keys:
        stage = engine.stages[key]
        stage.rehearse(stage.row_shapes["network"][0])  # makes tables and all else that only a first step waits for
        for rows in stage.row_shapes["network"]:
            timer = timer_on(stage.device)
            try:
                stage.rehearse(rows)
            except torch.OutOfMemoryError:
                if rows == stage.row_shapes["network"][0]:
                    raise
                stage.give_up(rows)
            if rows not in stage.row_shapes["network"]:
                break
            timer.end()
            engine.costs.note(key, rows, timer.wait())
        engine.costs.keep(key, stage.row_shapes["network"])
