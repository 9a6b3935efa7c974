"""A repeated claim of the paper: the published result, its measurement here, and its charts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.paper.core import Lab
from evaluation.plots import Point, Series

Points = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """number: of the claim in docs/paper.md. measure returns points, stored as JSON, which check and draw read.

    checks: sentences that are true or false here. charts: SVG by name.
    """

    number: int
    part: str
    claim: str
    published: str
    measure: Callable[[Lab], Points]
    checks: Callable[[Points], dict[str, bool]]
    charts: Callable[[Points], dict[str, str]]


def value(point: Mapping[str, Any], metric: str) -> float:
    """A metric of a point."""
    return float(point["metrics"][metric]["value"])


def above(a: Mapping[str, Any], b: Mapping[str, Any], metric: str) -> bool:
    """Return whether a metric of a is above that of b by more than chance; intervals are assumed to be independent."""
    halves = [
        max(each["value"] - each["low"], each["high"] - each["value"])
        for each in (a["metrics"][metric], b["metrics"][metric])
    ]
    return value(a, metric) - value(b, metric) > math.hypot(*halves)


def curve(name: str, points: Sequence[Mapping[str, Any]], x: str, metric: str) -> Series:
    """A metric over a field of the points."""
    drawn = []
    for point in points:
        figure = point["metrics"][metric]
        label = f"{name}, {x} {point[x]:g}: {metric} {figure['value']:.4g}"
        drawn.append(Point(point[x], figure["value"], figure["low"], figure["high"], label))
    return Series(name, drawn)


def of(points: Points, **fields: Any) -> Points:
    """The points with these field values."""
    return [point for point in points if all(point[name] == each for name, each in fields.items())]
