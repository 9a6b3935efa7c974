"""What a step of each stage takes at each row shape: measured at start, and kept up to date."""

from collections.abc import Mapping, Sequence

from engine.shapes import padded

SMOOTHING = 0.9  # of what is measured often: one step says little on a shared machine
FADING = 0.99  # for each smaller step, of a larger one's figure: one that was slow once is avoided, but not for ever
HOPE = 0.8  # of the smaller step's time a row: as far as it fades
UNMEASURED_ROW = 1 / 1024


class StepCosts:
    """Seconds of a step, by stage and row shape; shapes are ascending row counts, by stage.

    As long as a stage was never measured, a row counts as next to nothing beside the step: batches are as full as can
    be.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = {stage: tuple(each) for stage, each in shapes.items()}
        self._measured: dict[str, dict[int, float]] = {stage: {} for stage in shapes}
        self._times: dict[tuple[str, int], int] = {}  # that a stage's shape was measured
        self._seconds: dict[str, dict[int, float]] = {}
        self._row_seconds: dict[str, float] = {}
        for stage, each in self._shapes.items():
            self._set(stage, {shape: 1.0 + UNMEASURED_ROW * shape for shape in each})

    def note(self, stage: str, row_shape: int, seconds: float) -> None:
        """Take a measured step into account; not at a shape that was given up since."""
        if row_shape not in self._shapes[stage]:
            return
        measured = self._measured[stage]
        times = self._times.get((stage, row_shape), 0) + 1
        weight = max(1 / times, 1 - SMOOTHING)
        measured[row_shape] = (1 - weight) * measured.get(row_shape, 0.0) + weight * seconds
        self._times[stage, row_shape] = times
        self._fade_larger(stage, row_shape)
        self._set(stage, {shape: measured.get(shape) or _at_most(measured, shape) for shape in self._shapes[stage]})

    def _fade_larger(self, stage: str, row_shape: int) -> None:
        """Believe in the end that larger batches may pay, so that one is taken and its time known again."""
        measured = self._measured[stage]
        for shape, seconds in measured.items():
            hoped = HOPE * measured[row_shape] * shape / row_shape
            if shape > row_shape and seconds > hoped:
                measured[shape] = max(FADING * seconds, hoped)
                self._times[stage, shape] = 0  # what it takes next is all that is known

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
    """What a shape that was never measured takes: several smaller batches do its work, and a larger one more."""
    return min(seconds * -(-shape // rows) for rows, seconds in measured.items())
