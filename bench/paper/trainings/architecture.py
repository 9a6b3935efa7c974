"""Rows 1, 2 and 3: switches of the architecture, heads of attention, and AdaGN, at an equal budget of FLOPs.

Each row measures all networks, because their spread over seeds is pooled, and shows only its own.
"""

from collections.abc import Sequence
from functools import partial

from bench.paper.core import Lab
from bench.paper.row import Points, Row, above, of, value
from bench.paper.trainings.diffusion import Trained
from bench.paper.trainings.points import seeds_of, with_intervals
from bench.paper.trainings.variants import VARIANTS, num_steps
from evaluation.plots import Point, Series, chart

SWITCHES = ("two blocks a level", "4 heads", "attention at 16, 8, 4", "BigGAN up and down")
ARCHITECTURE_NETWORKS = ("baseline", *SWITCHES, "rescaled residuals", "together")
HEADS_NETWORKS = ("baseline", "4 heads", "1 head", "together")
NORM_NETWORKS = ("together", "addition")


def measure(lab: Lab) -> Points:
    return with_intervals(
        [
            seeds_of(lab, partial(Trained, name), network=name, steps=num_steps(variant))
            for name, variant in VARIANTS.items()
        ],
        paired=True,
    )


def lowers(points: Points, one: str, other: str) -> bool:
    """Return whether the FID of network `one` is lower than that of `other`, by more than chance."""
    return above(of(points, network=other)[0], of(points, network=one)[0], "fid")


def architecture_checks(points: Points) -> dict[str, bool]:
    shown = [of(points, network=name)[0] for name in ARCHITECTURE_NETWORKS]
    found = {f"{name}: FID is lower than the baseline's": lowers(points, name, "baseline") for name in SWITCHES}
    return found | {
        "rescaled residuals: FID is no lower than the baseline's": not lowers(points, "rescaled residuals", "baseline"),
        "together: FID is lower than the baseline's": lowers(points, "together", "baseline"),
        "together: FID is the lowest of all": min(shown, key=lambda each: value(each, "fid"))["network"] == "together",
    }


def heads_checks(points: Points) -> dict[str, bool]:
    return {
        "4 heads have a lower FID than 1, of the baseline": lowers(points, "4 heads", "baseline"),
        "4 heads have a lower FID than 1, of all switches together": lowers(points, "together", "1 head"),
    }


def norm_checks(points: Points) -> dict[str, bool]:
    return {"AdaGN has a lower FID than addition and GroupNorm": lowers(points, "together", "addition")}


def charts(names: Sequence[str], points: Points) -> dict[str, str]:
    """FID of every training seed beside the mean with its interval, one network beside the other."""
    series = []
    for place, name in enumerate(names):
        (each,) = of(points, network=name)
        figure = each["metrics"]["fid"]
        mean = Point(place, figure["value"], figure["low"], figure["high"], f"{name}: mean {figure['value']:.3g}")
        seeds = [Point(place + 0.2, fid, label=f"{name}: {fid:.3g}") for fid in each["by_seed"]["fid"]]
        series.append(Series(name, [mean, *seeds], joined=False))
    return {"fid": chart("FID at equal FLOPs, and of each seed", "network", "FID", series)}


ARCHITECTURE = Row(
    1,
    "architecture",
    "Depth, more heads, attention at several resolutions and BigGAN's up and downsampling each lower FID, and together "
    "most; rescaled residuals do not.",
    "ImageNet 128, 700K iterations (Table 1): 15.33; -0.21 by depth 4, -0.54 by 4 heads, -0.72 by attention at 32, 16, "
    "8, -1.20 by BigGAN's blocks, +0.16 by rescaled residuals, -3.14 by the last three that help, together.",
    measure,
    architecture_checks,
    partial(charts, ARCHITECTURE_NETWORKS),
)
HEADS = Row(
    2,
    "heads",
    "More heads, or fewer channels a head, lower FID.",
    "ImageNet 128 (Table 2): 14.08 with 1 head; -0.50 with 2, -0.97 with 4, -1.17 with 8; -1.36 with 32 channels a "
    "head, -1.03 with 64, -1.08 with 128.",
    measure,
    heads_checks,
    partial(charts, HEADS_NETWORKS),
)
NORM = Row(
    3,
    "norm",
    "AdaGN has a lower FID than adding the embedding before GroupNorm.",
    "ImageNet 128 (Table 3): 13.06 with AdaGN, 15.08 with addition and GroupNorm.",
    measure,
    norm_checks,
    partial(charts, NORM_NETWORKS),
)
