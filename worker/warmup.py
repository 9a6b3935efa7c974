"""What a step costs at each shape, measured once at start, so that the first estimates are not guesses."""

import time
from collections.abc import Iterable

from engine.stage import Stage
from worker.metrics import StepMetrics


def measure_steps(stages: Iterable[Stage], metrics: StepMetrics) -> None:
    """Time one step of every stage at every shape; the shapes were run before, so this times no first call."""
    for stage in stages:
        for rows in stage.network_shapes:
            started = time.monotonic()
            stage.rehearse(rows)
            metrics.note_cost(stage.name, rows, time.monotonic() - started)
