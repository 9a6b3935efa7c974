"""Row 8: learned variances allow fewer steps."""

from bench.paper.core import VARIANCE_CHANNELS, Cell, Lab, Variance
from bench.paper.row import Points, Row, above, curve, of
from evaluation.plots import chart

LEARNED = "learned"
BOUNDS: tuple[Variance, ...] = ("small", "large")
STEPS = (10, 25)


def measure(lab: Lab) -> Points:
    """Points at both bounds of the variance, and at the learned variance if the network has one."""
    learns = lab.subject.plan.base.config.out_channels > VARIANCE_CHANNELS
    cells = [
        Cell(0.0, "ddpm", steps, variance=each) for steps in STEPS for each in (*((None,) if learns else ()), *BOUNDS)
    ]
    return [lab.point(cell) | {"variance": cell.variance or LEARNED} for cell in cells]


def checks(points: Points) -> dict[str, bool]:
    found = {}
    for steps in STEPS:
        by_variance = {each["variance"]: each for each in of(points, steps=steps)}
        small, large = (by_variance[each] for each in BOUNDS)
        found[f"{steps} steps: the upper bound (beta) has a higher FID than the lower bound"] = above(
            large, small, "fid"
        )
        if (learned := by_variance.get(LEARNED)) is None:
            continue
        found[f"{steps} steps: the upper bound (beta) has a higher FID than the learned variance"] = above(
            large, learned, "fid"
        )
        found[f"{steps} steps: the lower bound has no lower FID than the learned variance"] = not above(
            learned, small, "fid"
        )
    return found


def charts(points: Points) -> dict[str, str]:
    drawn = dict.fromkeys(each["variance"] for each in points)
    series = [curve(each, of(points, variance=each), "steps", "fid") for each in drawn]
    return {"fid": chart("FID of DDPM by its variance", "steps", "FID", series, log_y=True)}


VARIANCE = Row(
    8,
    "variance",
    "A learned variance allows fewer steps than either fixed one.",
    "Nichol and Dhariwal 2021 (IDDPM); ADM uses it too.",
    measure,
    checks,
    charts,
)
