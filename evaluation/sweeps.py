"""Sweeps: the costs and metrics of each setting, the Pareto front, and recommended settings."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.plots import Point, Series, chart
from vocabulary.counts import counted
from vocabulary.sampling import num_evaluations

METRICS = ("fid", "sfid", "inception_score", "precision", "recall")  # columns of a table; the JSON has all metrics


@dataclass(frozen=True)
class Setting:
    """One setting of a sweep."""

    scale: float
    steps: int
    sampler: str

    @property
    def evaluations(self) -> int:
        """Network evaluations per image."""
        return num_evaluations(self.sampler, self.steps)

    @property
    def name(self) -> str:
        return f"{self.sampler}, {counted(self.steps, 'step')}, scale {self.scale:g}"

    @property
    def query(self) -> str:
        """The setting as the query of a service: or local: source."""
        return f"scale={self.scale:g}&steps={self.steps}&sampler={self.sampler}"


Cell = Mapping[str, Any]
"""A cell of a report: scale, steps, sampler, evaluations, seconds_per_image, metrics."""


def grid(scales: Sequence[float], steps: Sequence[int], samplers: Sequence[str]) -> list[Setting]:
    """Every combination, once."""
    combinations = itertools.product(samplers, steps, scales)
    return list(dict.fromkeys(Setting(scale, count, sampler) for sampler, count, scale in combinations))


def front(cells: Sequence[Cell], *costs: Callable[[Cell], float]) -> list[int]:
    """Indices of the Pareto front: no other cell is better in one cost and at least as good in the rest; less is
    better."""
    found = [[cost(cell) for cost in costs] for cell in cells]

    def beaten(own: Sequence[float], other: Sequence[float]) -> bool:
        return other != own and all(a <= b for a, b in zip(other, own, strict=True))

    return [place for place, own in enumerate(found) if not any(beaten(own, other) for other in found)]


def value(metric: str, sign: float = 1.0) -> Callable[[Cell], float]:
    """A function that returns a cell's metric as a cost; sign -1 if more is better."""
    return lambda cell: sign * float(cell["metrics"][metric]["value"])


def recommended(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Recommended settings by purpose, in the fields of a pipeline in stack.json and in /v1/models.

    quality: the lowest FID. speed: the fewest evaluations among cells whose FID is not significantly above the lowest.
    precision, recall: the highest; of equal cells, the one with the lower FID.
    """
    by_fid = sorted(cells, key=value("fid"))
    best = by_fid[0]
    near = [cell for cell in by_fid if within_chance(best["metrics"]["fid"], cell["metrics"]["fid"])]
    chosen = {"quality": best, "speed": min(near, key=lambda cell: cell["evaluations"])}
    if all("precision" in cell["metrics"] for cell in cells):
        chosen |= {name: min(by_fid, key=value(name, -1)) for name in ("precision", "recall")}
    return {name: as_defaults(cell) for name, cell in chosen.items()}


def within_chance(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether the difference is within the combined 95 % interval of both, taken as independent."""
    if best["low"] is None or other["low"] is None:
        return bool(best["value"] == other["value"])
    half = math.hypot(*(max(each["value"] - each["low"], each["high"] - each["value"]) for each in (best, other)))
    return float(other["value"] - best["value"]) <= half


def as_defaults(cell: Cell) -> dict[str, Any]:
    """The fields of a pipeline in stack.json for a cell."""
    return {
        "guidance_scale": cell["scale"],
        "sampling": {"steps": cell["steps"], "sampler": cell["sampler"], "eta": cell["eta"]},
    }


def plots(cells: Sequence[Cell]) -> Iterator[str]:
    """Precision against recall, and FID against evaluations and seconds; a series for each sampler and number of steps,
    or for each sampler and scale."""
    if all("precision" in cell["metrics"] for cell in cells):
        by_steps = grouped(cells, lambda cell: f"{cell['sampler']}, {counted(cell['steps'], 'step')}")
        curves = [
            Series(name, [point(cell, cell["metrics"]["recall"]["value"], "precision") for cell in each])
            for name, each in by_steps.items()
        ]
        yield chart("Precision against recall, by scale", "recall", "precision", curves)
    by_scale = grouped(cells, lambda cell: f"{cell['sampler']}, scale {cell['scale']:g}")
    for field, title in (("evaluations", "evaluations per image"), ("seconds_per_image", "seconds per image")):
        curves = [
            Series(
                name, [point(cell, cell[field], "fid") for cell in sorted(each, key=lambda cell: float(cell[field]))]
            )
            for name, each in by_scale.items()
        ]
        yield chart(f"FID against {title}", title, "FID", curves, log_x=True, log_y=True)


def grouped(cells: Sequence[Cell], name: Callable[[Cell], str]) -> dict[str, list[Cell]]:
    """Group cells by name; keep their order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(name(cell), []).append(cell)
    return found


def point(cell: Cell, x: float, metric: str) -> Point:
    """A cell's metric over x, with its interval."""
    figure = cell["metrics"][metric]
    label = (
        f"{cell['sampler']}, {counted(cell['steps'], 'step')}, scale {cell['scale']:g}: {metric} {figure['value']:.4g}"
    )
    return Point(x, figure["value"], figure["low"], figure["high"], label)


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """The cells, one line each."""
    yield f"{'sampler':10}{'steps':>6}{'scale':>7}{'eval.':>7}{'s/image':>9}" + "".join(
        f"{metric.replace('inception_score', 'IS'):>11}" for metric in METRICS
    )
    for cell in cells:
        figures = (cell["metrics"].get(metric) for metric in METRICS)
        values = "".join(f"{'-' if each is None else format(each['value'], '.4f'):>11}" for each in figures)
        start = f"{cell['sampler']:10}{cell['steps']:>6}{cell['scale']:>7g}{cell['evaluations']:>7}"
        yield f"{start}{cell['seconds_per_image']:>9.3f}{values}"
