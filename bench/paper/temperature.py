"""Row 10: a temperature does not help. A factor on the predicted noise is the inverse of the paper's temperature."""

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row, above, curve, value
from evaluation.plots import chart


def measure(lab: Lab) -> Points:
    """The factors, among them the pipeline's own."""
    own = lab.subject.pipeline(conditional=True).eps_scale
    factors = sorted({*lab.subject.factors, own})
    return [lab.point(Cell(eps_scale=None if each == own else each)) | {"eps_scale": each} for each in factors]


def checks(points: Points) -> dict[str, bool]:
    by_factor = {point["eps_scale"]: point for point in points}
    best = min(points, key=lambda each: value(each, "fid"))
    return {
        "no factor has a lower FID than 1 by more than chance": not above(by_factor[1.0], best, "fid"),
        "precision is lower at 1.06, a temperature of 0.94, than at 1": above(
            by_factor[1.0], by_factor[1.06], "precision"
        ),
        "recall is lower at 1.06 than at 1": above(by_factor[1.0], by_factor[1.06], "recall"),
        "precision is lower at 0.97, a temperature of 1.03, than at 1": above(
            by_factor[1.0], by_factor[0.97], "precision"
        ),
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
    "A low temperature, of the noise of each step or of the predicted noise, does not help: precision and recall both "
    "fall.",
    "ImageNet 128 (appendix G, Figure 11): temperatures of 0.999 to 0.9 by either way; FID rises.",
    measure,
    checks,
    charts,
)
