"""Row 4: classifier guidance trades diversity for fidelity. Row 5: agreement of samples with their class."""

from functools import partial

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row, above, curve, of, value
from evaluation.plots import Point, Series, chart

NAMES = {True: "conditional", False: "unconditional"}
DRAWN = ("fid", "sfid", "inception_score", "precision", "recall")


def measure(lab: Lab) -> Points:
    return [
        lab.point(Cell(scale, conditional=conditional))
        for conditional, scales in lab.subject.scales.items()
        for scale in scales
    ]


def checks(points: Points) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for conditional, name in NAMES.items():
        own = of(points, conditional=conditional)
        ends = own[0], own[-1]
        best, spatial = (min(own, key=partial(value, metric=metric)) for metric in ("fid", "sfid"))
        found |= {
            f"{name}: precision is higher at the scale of the lowest FID than without guidance": above(
                best, own[0], "precision"
            ),
            f"{name}: the Inception Score is higher there": above(best, own[0], "inception_score"),
            f"{name}: recall is lower there": above(own[0], best, "recall"),
            f"{name}: FID is lowest between the ends": best not in ends,
            f"{name}: sFID is lowest between the ends": spatial not in ends,
            f"{name}: sFID is higher at the largest scale than at its best": above(own[-1], spatial, "sfid"),
        }
    return found


def charts(points: Points) -> dict[str, str]:
    drawn = {}
    for metric in DRAWN:
        series = [
            curve(name, of(points, conditional=conditional), "scale", metric) for conditional, name in NAMES.items()
        ]
        drawn[metric] = chart(f"{metric} by guidance scale", "guidance scale", metric, series)
    trade = [
        Series(
            name,
            [Point(value(each, "recall"), value(each, "precision"), label=f"scale {each['scale']:g}") for each in own],
        )
        for name, own in ((name, of(points, conditional=conditional)) for conditional, name in NAMES.items())
    ]
    drawn["trade"] = chart("precision against recall, by scale", "recall", "precision", trade)
    return drawn


GUIDANCE = Row(
    4,
    "guidance",
    "Classifier guidance trades diversity for fidelity: precision and Inception Score rise, recall falls, FID and sFID "
    "have an optimum between.",
    "ImageNet 256: unconditional FID 26.21, 33.03 at scale 1, 12.00 at 10; conditional 10.94, 4.59 at 1, 9.11 at 10.",
    measure,
    checks,
    charts,
)


def confidence_checks(points: Points) -> dict[str, bool]:
    own = of(points, conditional=False)
    plain, one, largest = own[0], own[1], own[-1]
    return {
        "at scale 1 about half of the samples look like their class": 0.35 < value(one, "class_probability") < 0.65,
        "at scale 1 they look more like it than without guidance": above(one, plain, "class_probability"),
        "at the largest scale nearly all do": value(largest, "class_probability") > 0.9,
    }


def confidence_charts(points: Points) -> dict[str, str]:
    series = [
        curve(name, of(points, conditional=conditional), "scale", "class_probability")
        for conditional, name in NAMES.items()
    ]
    title = "the judge's probability of the class asked for"
    return {"probability": chart(title, "guidance scale", "probability", series)}


CONFIDENCE = Row(
    5,
    "confidence",
    "Scale 1 leaves samples that do not look like their class; larger scales do not.",
    "ImageNet, unconditional: about 50 % probability at scale 1, near 100 % above (section 4.3).",
    measure,
    confidence_checks,
    confidence_charts,
)
