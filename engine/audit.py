"""Audits in service: recomputes a step of an image, alone and in batches, and compares the results bit for bit.

The first check is the argument of docs/decisions/0014 that row shapes agree, the second their comparison at start.
Audits are the third: they find differences that occur only on this processor and with these inputs, and take the row
shape out of use.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from engine.stage import Stage
from engine.steps import StepReport
from engine.trajectory import Trajectory


@dataclass(frozen=True)
class Difference:
    """A step whose result differed when it was recomputed.

    guilty: the row shapes whose results differ from those of most shapes, by part of the stage (network or guide);
    they are out of use. It is empty if all shapes agree now, which means that the difference is not reproducible.
    """

    stage: str
    timestep: float
    class_label: int | None
    row_shape: int
    guilty: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Candidate:
    """A step of one image, for the next audit.

    Only this step of the report is kept, because a report's images take memory.
    """

    stage: str
    row_shape: int
    seconds: float
    before: Trajectory
    after: Trajectory


@dataclass
class Audit:
    """Draws one of the steps since the last audit, each with the same probability, and recomputes it.

    share: the largest share of the device's time for audits; 0 for none.
    """

    stages: Mapping[str, Stage]
    share: float
    draw: Random = field(default_factory=Random)
    compared: int = 0
    _owed_seconds: float = 0.0
    _steps: int = 0
    _candidate: "_Candidate | None" = None

    def note(self, report: StepReport) -> None:
        """Make a random step of a report the candidate, or leave the present one (reservoir sampling)."""
        self._owed_seconds += self.share * report.seconds
        if not self.share or not report.is_whole or not report.moved:
            return
        self._steps += 1
        if self.draw.random() * self._steps < 1:
            index = self.draw.randrange(len(report.moved))
            candidate = report.stage, report.row_shape, report.seconds, report.before[index], report.moved[index]
            self._candidate = _Candidate(*candidate)

    @property
    def is_due(self) -> bool:
        """Return whether there is a candidate, and the audits' share of device time since the last audit suffices for
        two steps as long as the candidate's."""
        return self._candidate is not None and self._owed_seconds >= 2 * self._candidate.seconds

    @torch.no_grad()
    def run(self) -> Difference | None:
        """Recompute the candidate; None if the result is the same. No image may be in the engine."""
        assert self._candidate is not None
        candidate, self._candidate, self._steps, self._owed_seconds = self._candidate, None, 0, 0.0
        stage, before = self.stages[candidate.stage], candidate.before
        self.compared += 1
        if all(_same(candidate.after, moved) for moved in self._recomputed(stage, before)):
            return None
        guilty = {part: shapes for part in stage.row_shapes if (shapes := self._guilty(stage, part, before))}
        for part, shapes in guilty.items():
            stage.drop_shapes(part, shapes)
        return Difference(candidate.stage, before.timestep, before.request.network_label, candidate.row_shape, guilty)

    def _recomputed(self, stage: Stage, before: Trajectory) -> Iterator[Trajectory]:
        yield stage.step([before])[0]
        batch = [stage.rehearsal() for _ in range(self.draw.randint(1, stage.row_shapes["network"][-1]))]
        index = self.draw.randrange(len(batch))
        batch[index] = before
        yield stage.step(batch)[index]

    def _guilty(self, stage: Stage, part: str, before: Trajectory) -> tuple[int, ...]:
        """Shapes of a part whose results for a row differ from those of most shapes."""
        if part == "guide" and not before.guided:
            return ()
        states = [before, stage.rehearsal()]
        results = {}
        for shape in stage.row_shapes[part]:
            first, last = (
                stage.networks.probe(part, states, rows) for rows in ([0] + [1] * (shape - 1), [1] * (shape - 1) + [0])
            )
            results[shape] = _bits(first[0]), _bits(last[-1])
        usual, _ = Counter(bits for both in results.values() for bits in both).most_common(1)[0]
        return tuple(shape for shape, both in results.items() if set(both) != {usual})


def _same(one: Trajectory, other: Trajectory) -> bool:
    return _bits(one.x) == _bits(other.x) and _bits(one.memory) == _bits(other.memory)


def _bits(x: Tensor) -> bytes:
    return x.contiguous().cpu().numpy().tobytes()
