"""What a step costs at each shape, measured once at start, so that the first choices and estimates are not guesses."""

import torch

from engine.engine import Engine
from engine.laps import lap_on


def measure_steps(engine: Engine) -> None:
    """Time one step of every stage at every shape; the shapes were run before, so this times no first call.

    A whole step takes more memory than the network alone: shapes that it does not suffice for are given up.
    Raises: torch.OutOfMemoryError where it does not suffice for the smallest one.
    """
    for key, stage in engine.stages.items():
        stage.rehearse(stage.network_shapes[0])  # tables, and all else that only a first step has to wait for
        for rows in stage.network_shapes:
            lap = lap_on(stage.device)
            try:
                stage.rehearse(rows)
            except torch.OutOfMemoryError:
                if rows == stage.network_shapes[0]:
                    raise
                stage.give_up(rows)
            if rows not in stage.network_shapes:
                break
            lap.end()
            engine.costs.note(key, rows, lap.wait())
        engine.costs.keep(key, stage.network_shapes)
