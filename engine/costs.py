"""The time of a step of each stage at each row shape: measured at start, then averaged over retired steps."""

from collections.abc import Mapping, Sequence

from engine.row_shapes import padded

SMOOTHING = 0.9  # weight of the old average: one step is a noisy measurement on a shared machine
FADING = 0.99  # factor on larger shapes' times at each step of a smaller one, so that a shape that was slow is retried
EXPECTED_SAVING = 0.8  # limit of fading: a larger shape's time per row, relative to a smaller one's
UNMEASURED_ROW = 1 / 1024  # assumed cost of a row before a measurement, relative to that of a step


class StepCosts:
    """Seconds of a step, by stage and row shape; shapes: ascending row counts, by stage.

    Before a stage is measured, a step is assumed to cost almost the same at every shape, so batches are as full as
    possible.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = {stage: tuple(each) for stage, each in shapes.items()}
        self._measured: dict[str, dict[int, float]] = {stage: {} for stage in shapes}
        self._counts: dict[tuple[str, int], int] = {}  # number of measurements, by stage and shape
        self._seconds: dict[str, dict[int, float]] = {}
        self._row_seconds: dict[str, float] = {}
        for stage, each in self._shapes.items():
            self._set(stage, {shape: 1.0 + UNMEASURED_ROW * shape for shape in each})

    def note(self, stage: str, row_shape: int, seconds: float) -> None:
        """Record a measured step; ignored for a shape that is no longer used."""
        if row_shape not in self._shapes[stage]:
            return
        measured = self._measured[stage]
        count = self._counts.get((stage, row_shape), 0) + 1
        weight = max(1 / count, 1 - SMOOTHING)
        measured[row_shape] = (1 - weight) * measured.get(row_shape, 0.0) + weight * seconds
        self._counts[stage, row_shape] = count
        self._fade_larger(stage, row_shape)
        self._set(stage, {shape: measured.get(shape) or _at_most(measured, shape) for shape in self._shapes[stage]})

    def _fade_larger(self, stage: str, row_shape: int) -> None:
        """Lower the times of larger shapes step by step, so that in the end one is used and measured again."""
        measured = self._measured[stage]
        for shape, seconds in measured.items():
            expected = EXPECTED_SAVING * measured[row_shape] * shape / row_shape
            if shape > row_shape and seconds > expected:
                measured[shape] = max(FADING * seconds, expected)
                self._counts[stage, shape] = 0  # the next measurement replaces the faded time

    def keep(self, stage: str, shapes: Sequence[int]) -> None:
        """Forget all shapes of a stage except these."""
        self._shapes[stage] = tuple(shapes)
        self._measured[stage] = {shape: each for shape, each in self._measured[stage].items() if shape in shapes}
        self._set(stage, {shape: self._seconds[stage][shape] for shape in shapes})

    def _set(self, stage: str, seconds: dict[int, float]) -> None:
        self._seconds[stage] = seconds
        self._row_seconds[stage] = min(each / shape for shape, each in seconds.items())

    def seconds(self, stage: str, rows: int) -> float:
        """Seconds of a step of this many rows, which are padded to a shape."""
        return self._seconds[stage][padded(rows, self._shapes[stage])]

    def row_seconds(self, stage: str) -> float:
        """Seconds per row of a step, at the shape with the lowest value."""
        return self._row_seconds[stage]

    def row_shape(self, stage: str, rows: int) -> int:
        """The row shape to which this many rows are padded."""
        return padded(rows, self._shapes[stage])

    def row_shapes(self, stage: str) -> Sequence[int]:
        """All row shapes of a stage, ascending."""
        return self._shapes[stage]

    def measured_ms(self, stage: str) -> dict[int, float]:
        """Milliseconds by row shape, of the shapes that were measured."""
        return {shape: seconds * 1000 for shape, seconds in sorted(self._measured[stage].items())}


def _at_most(measured: Mapping[int, float], shape: int) -> float:
    """Upper bound of an unmeasured shape's time: that of several smaller batches, or of a larger batch."""
    return min(seconds * -(-shape // rows) for rows, seconds in measured.items())
