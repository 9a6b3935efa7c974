"""What a step costs at each shape, measured once at start, so that the first choices and estimates are not guesses."""

import time

from engine.engine import Engine


def measure_steps(engine: Engine) -> None:
    """Time one step of every stage at every shape; the shapes were run before, so this times no first call."""
    for key, stage in engine.stages.items():
        for rows in stage.network_shapes:
            started = time.monotonic()
            stage.rehearse(rows)
            engine.costs.note(key, rows, time.monotonic() - started)
