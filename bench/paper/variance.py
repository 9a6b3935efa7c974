"""Row 8: learned variances allow fewer steps."""

from bench.paper.core import Cell, Lab, Variance
from bench.paper.row import Points, Row, above, curve, of
from evaluation.plots import chart

VARIANCES: tuple[Variance, ...] = ("learned", "small", "large")
STEPS = (10, 25)


def measure(lab: Lab) -> Points:
    return [lab.point(Cell(0.0, "ddpm", steps, variance=each)) for steps in STEPS for each in VARIANCES]


def checks(points: Points) -> dict[str, bool]:
    found = {}
    for steps in STEPS:
        learned, small, large = (of(points, steps=steps, variance=each)[0] for each in VARIANCES)
        found[f"{steps} steps: the upper bound (beta) has a higher FID than the learned variance"] = above(
            large, learned, "fid"
        )
        found[f"{steps} steps: the lower bound has no lower FID than the learned variance"] = not above(
            learned, small, "fid"
        )
    return found


def charts(points: Points) -> dict[str, str]:
    series = [curve(each, of(points, variance=each), "steps", "fid") for each in VARIANCES]
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
