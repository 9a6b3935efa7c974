"""What a step of each stage takes at each row shape: measured at start, and kept up to date."""

from collections.abc import Mapping, Sequence

from engine.shapes import padded

SMOOTHING = 0.9  # of what is measured: one step says little on a shared machine
UNMEASURED_ROW = 1 / 1024


class StepCosts:
    """Seconds of a step, by stage and row shape; shapes are ascending row counts, by stage.

    As long as a stage was never measured, a row counts as next to nothing beside the step: batches are as full as can
    be.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = {stage: tuple(each) for stage, each in shapes.items()}
        self._measured: dict[str, dict[int, float]] = {stage: {} for stage in shapes}
        self._seconds: dict[str, dict[int, float]] = {}
        self._row_seconds: dict[str, float] = {}
        for stage, each in self._shapes.items():
            self._set(stage, {shape: 1.0 + UNMEASURED_ROW * shape for shape in each})

    def note(self, stage: str, row_shape: int, seconds: float) -> None:
        """Take a measured step into account."""
        measured = self._measured[stage]
        before = measured.get(row_shape, seconds)
        measured[row_shape] = SMOOTHING * before + (1 - SMOOTHING) * seconds
        self._set(stage, {shape: _at_most(measured, shape) for shape in self._shapes[stage]})

    def keep(self, stage: str, shapes: Sequence[int]) -> None:
        """Forget all shapes of a stage but these, which it still has."""
        self._shapes[stage] = tuple(shapes)
        self._measured[stage] = {shape: each for shape, each in self._measured[stage].items() if shape in shapes}
        self._set(stage, {shape: self._seconds[stage][shape] for shape in shapes})

    def _set(self, stage: str, seconds: dict[int, float]) -> None:
        self._seconds[stage] = seconds
        self._row_seconds[stage] = min(each / shape for shape, each in seconds.items())

    def seconds(self, stage: str, rows: int) -> float:
        """Of a step of so many rows, which are padded to a shape."""
        return self._seconds[stage][padded(rows, self._shapes[stage])]

    def row_seconds(self, stage: str) -> float:
        """Of one row of a step, at the shape where that is least."""
        return self._row_seconds[stage]

    def row_shape(self, stage: str, rows: int) -> int:
        """What so many rows are padded to."""
        return padded(rows, self._shapes[stage])

    def row_shapes(self, stage: str) -> Sequence[int]:
        """All that a step may be padded to, ascending."""
        return self._shapes[stage]

    def measured_ms(self, stage: str) -> dict[int, float]:
        """Milliseconds by row shape, of the shapes that were measured."""
        return {shape: seconds * 1000 for shape, seconds in sorted(self._measured[stage].items())}


def _at_most(measured: Mapping[int, float], shape: int) -> float:
    # A larger batch does the same work and more; several smaller ones do it too. So a shape that was slow once, and is
    # avoided since, is not avoided for ever for a figure that nobody corrects.
    return min(seconds * -(-shape // rows) for rows, seconds in measured.items())
