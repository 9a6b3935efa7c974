"""Row 4: classifier guidance trades diversity for fidelity. Row 5: agreement of samples with their class."""

from functools import partial

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row, above, curve, of, value
from evaluation.plots import Point, Series, chart

CONDITIONAL = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
UNCONDITIONAL = (0.0, 1.0, 5.0, 10.0, 20.0, 40.0)
NAMES = {"demo": "conditional", "demo-uncond": "unconditional"}
DRAWN = ("fid", "sfid", "inception_score", "precision", "recall")


def cells() -> list[Cell]:
    return [Cell(scale) for scale in CONDITIONAL] + [Cell(scale, pipeline="demo-uncond") for scale in UNCONDITIONAL]


def measure(lab: Lab) -> Points:
    return [lab.point(cell) for cell in cells()]


def checks(points: Points) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for pipeline, name in NAMES.items():
        own = of(points, pipeline=pipeline)
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
        series = [curve(name, of(points, pipeline=pipeline), "scale", metric) for pipeline, name in NAMES.items()]
        drawn[metric] = chart(f"{metric} by guidance scale", "guidance scale", metric, series)
    trade = [
        Series(
            name,
            [Point(value(each, "recall"), value(each, "precision"), label=f"scale {each['scale']:g}") for each in own],
        )
        for name, own in ((name, of(points, pipeline=pipeline)) for pipeline, name in NAMES.items())
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
    own = of(points, pipeline="demo-uncond")
    plain, one, largest = own[0], own[1], own[-1]
    return {
        "at scale 1 about half of the samples look like their class": 0.35 < value(one, "class_probability") < 0.65,
        "at scale 1 they look more like it than without guidance": above(one, plain, "class_probability"),
        "at the largest scale nearly all do": value(largest, "class_probability") > 0.9,
    }


def confidence_charts(points: Points) -> dict[str, str]:
    series = [
        curve(name, of(points, pipeline=pipeline), "scale", "class_probability") for pipeline, name in NAMES.items()
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
