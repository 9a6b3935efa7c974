"""Row 10: a temperature does not help."""

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row, above, curve, value
from evaluation.plots import chart

OWN = 1.03  # the pipeline's factor on the predicted noise
FACTORS = (0.97, 1.0, 1.015, OWN, 1.045, 1.06)


def measure(lab: Lab) -> Points:
    return [lab.point(Cell(eps_scale=None if each == OWN else each)) | {"eps_scale": each} for each in FACTORS]


def checks(points: Points) -> dict[str, bool]:
    by_factor = {point["eps_scale"]: point for point in points}
    best = min(points, key=lambda each: value(each, "fid"))
    return {
        "no factor has a lower FID than 1 by more than chance": not above(by_factor[1.0], best, "fid"),
        "precision is lower at 0.97 than at 1": above(by_factor[1.0], by_factor[0.97], "precision"),
        "precision is lower at 1.06 than at the best factor": above(best, by_factor[1.06], "precision"),
        "recall is lower at 0.97 than at 1": above(by_factor[1.0], by_factor[0.97], "recall"),
    }


def charts(points: Points) -> dict[str, str]:
    return {
        metric: chart(
            f"{metric} by a factor on the predicted noise",
            "factor",
            metric,
            [curve("DDIM", points, "eps_scale", metric)],
        )
        for metric in ("fid", "precision", "recall")
    }


TEMPERATURE = Row(
    10,
    "temperature",
    "Scaling the network's output or the noise by a temperature does not help: precision and recall both fall.",
    "Appendix G, as a figure.",
    measure,
    checks,
    charts,
)
