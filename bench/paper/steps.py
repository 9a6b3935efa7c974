"""Row 7: 25 steps are near 250. Row 14: the cost of an image against its quality."""

from functools import partial

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row, above, curve, of, value
from evaluation.plots import Point, Series, chart


def measure(lab: Lab) -> Points:
    """A point for every sampler and step count.

    Images per second follow from the fastest cell's evaluations per second, because other programs slowed the others.
    """
    scale = lab.subject.pipeline(conditional=True).guidance_scale
    measured = [Cell(scale, sampler, count) for sampler, counts in lab.subject.steps.items() for count in counts]
    rate = max(cell.plan.num_evaluations / lab.seconds(cell) for cell in measured)
    return [lab.point(cell) | {"images_per_second": rate / cell.plan.num_evaluations} for cell in measured]


def checks(points: Points) -> dict[str, bool]:
    ddim = {point["steps"]: point for point in of(points, sampler="ddim")}
    solver = {point["steps"]: point for point in of(points, sampler="dpmpp_2m")}
    ddpm = {point["steps"]: point for point in of(points, sampler="ddpm")}
    return {
        "DDIM: FID at 25 steps is within chance of that at 50": not above(ddim[25], ddim[50], "fid"),
        "DDIM: FID at 10 steps is above that at 25": above(ddim[10], ddim[25], "fid"),
        "DDPM at 25 steps is above DDIM at 25": above(ddpm[25], ddim[25], "fid"),
        "DPM-Solver++(2M) at 10 steps is within chance of DDIM at 25": not above(solver[10], ddim[25], "fid"),
    }


def samplers(points: Points) -> list[str]:
    return list(dict.fromkeys(each["sampler"] for each in points))


def charts(points: Points) -> dict[str, str]:
    fids, recalls = (
        [curve(sampler, of(points, sampler=sampler), "evaluations", metric) for sampler in samplers(points)]
        for metric in ("fid", "recall")
    )
    return {
        "fid": chart("FID by network evaluations", "evaluations", "FID", fids, log_x=True, log_y=True),
        "recall": chart("recall by network evaluations", "evaluations", "recall", recalls, log_x=True),
    }


STEPS = Row(
    7,
    "steps",
    "With guidance, 25 steps are near 250.",
    "ImageNet 128: FID 5.98 (DDIM, 25) against 2.97 (250); ImageNet 256: 5.44 against 4.59.",
    measure,
    checks,
    charts,
)


def cost_checks(points: Points) -> dict[str, bool]:
    five, ten, many = (min(of(points, evaluations=count), key=partial(value, metric="fid")) for count in (5, 10, 25))
    return {
        "the best FID of 5 evaluations is above the best of 25": above(five, many, "fid"),
        "the best FID of 10 evaluations is above the best of 25": above(ten, many, "fid"),
    }


def cost_charts(points: Points) -> dict[str, str]:
    series = [
        Series(
            sampler,
            [
                Point(each["images_per_second"], value(each, "fid"), label=f"{each['evaluations']} evaluations")
                for each in of(points, sampler=sampler)
            ],
        )
        for sampler in samplers(points)
    ]
    return {"cost": chart("FID by images a second", "images a second", "FID", series, log_x=True, log_y=True)}


COST = Row(
    14,
    "cost",
    "Sampling is slower than a GAN's one pass; fewer steps, and distillation, are the way.",
    "Section 7, without figures.",
    measure,
    cost_checks,
    cost_charts,
)
