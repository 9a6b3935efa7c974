"""Charts as SVG: points with their intervals, joined by lines, on two axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 30, 48  # pixels around the axes; the names of series are on the right
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)  # distances of ticks, times powers of ten
GROWTH = 1.06  # factor by which the axes extend beyond the outermost points
CAP = 3  # pixels to either side of an interval's ends


@dataclass(frozen=True)
class Point:
    """A value with its interval, if it has one, and its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points with one name; joined: connect them by a line, in order."""

    name: str
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """The lowest and highest value of an axis and their places in pixels; log: whether its scale is logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool) -> "Axis":
        low, high = min(values), max(values)
        if log:
            margin = GROWTH if low == high else (high / low) ** (GROWTH - 1)
            return cls(low / margin, high * margin, start, end, True)
        margin = (high - low) * (GROWTH - 1) or abs(high) * (GROWTH - 1) or 1.0
        return cls(low - margin, high + margin, start, end, False)

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        else:
            step = nice_step((self.high - self.low) / TICKS)
            values = [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in values if self.low <= value <= self.high]


def nice_step(least: float) -> float:
    """The smallest round number that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in STEPS if factor * power >= least * 0.999)


def chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], *, log_x: bool = False, log_y: bool = False
) -> str:
    """An SVG document. Raises: ValueError without any point."""
    points = [point for each in series for point in each.points]
    if not points:
        raise ValueError(f"{title}: there is nothing to draw")
    x = Axis.over([point.x for point in points], LEFT, WIDTH - RIGHT, log=log_x)
    heights = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    y = Axis.over([end for end in heights if end > 0 or not log_y], HEIGHT - BOTTOM, TOP, log=log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        '<g font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
        *_axes(x, y, x_label, y_label),
    ]
    for number, each in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        parts += _drawn(each, x, y, colour)
        row = TOP + 14 * number
        parts.append(f'<circle cx="{WIDTH - RIGHT + 14}" cy="{row}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 24}" y="{row + 4}">{escape(each.name)}</text>')
    return "\n".join([*parts, "</g></svg>\n"])


def _axes(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in x.ticks():
        place = x.place(value)
        parts.append(f'<path d="M{place} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>')
    for value in y.ticks():
        place = y.place(value)
        parts.append(f'<path d="M{LEFT} {place}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4}" text-anchor="end">{value:.4g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        *parts,
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#57606a"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]


def _drawn(series: Series, x: Axis, y: Axis, colour: str) -> list[str]:
    parts = []
    if series.joined and len(series.points) > 1:
        path = " ".join(f"{x.place(point.x)},{y.place(point.y)}" for point in series.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for point in series.points:
        across, up = x.place(point.x), y.place(point.y)
        if point.low is not None and point.high is not None:
            low, high = (y.place(max(end, y.low)) for end in (point.low, point.high))
            caps = "".join(f"M{across - CAP} {end}H{across + CAP}" for end in (low, high))
            parts.append(f'<path d="M{across} {low}V{high}{caps}" stroke="{colour}" stroke-opacity="0.6"/>')
        title = f"<title>{escape(point.label)}</title>" if point.label else ""
        parts.append(f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}">{title}</circle>')
    return parts
