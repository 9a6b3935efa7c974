"""Row 13: FID by training compute. Row 6: diffusion beside a GAN of the same compute."""

from functools import partial
from itertools import pairwise

from bench.paper.core import Lab
from bench.paper.row import Points, Row, above, curve, of, value
from bench.paper.trainings.diffusion import Trained
from bench.paper.trainings.gan import TrainedGan
from bench.paper.trainings.points import seeds_of, with_intervals
from bench.paper.trainings.variants import BUDGET, PARTS
from evaluation.plots import Point, Series, chart

DIFFUSION, GAN = "baseline", "GAN"
TRAINED_PARTS = (1, 2, 4)  # of four
TRUNCATIONS = (0.5, 1.0)
WHOLE = float("inf")  # no truncation


def diffusion_points(lab: Lab) -> Points:
    return [
        seeds_of(
            lab,
            partial(Trained, DIFFUSION, parts=parts),
            network=DIFFUSION,
            flops=BUDGET * parts / PARTS,
        )
        for parts in TRAINED_PARTS
    ]


def gan_points(lab: Lab) -> Points:
    """The GAN at shares of its training, and at its end with truncated latents."""
    made = [(parts, WHOLE) for parts in TRAINED_PARTS] + [(PARTS, each) for each in TRUNCATIONS]
    return [
        seeds_of(
            lab,
            partial(TrainedGan, parts=parts, truncation=truncation),
            network=GAN,
            flops=BUDGET * parts / PARTS,
            truncation=None if truncation == WHOLE else truncation,
        )
        for parts, truncation in made
    ]


def compute_measure(lab: Lab) -> Points:
    return with_intervals([*diffusion_points(lab), *of(gan_points(lab), truncation=None)], paired=False)


def compute_checks(points: Points) -> dict[str, bool]:
    diffusion, gan = of(points, network=DIFFUSION), of(points, network=GAN)
    found: dict[str, bool] = {
        f"{name}: FID falls from {less['flops']:.2g} to {more['flops']:.2g} FLOPs": above(less, more, "fid")
        for name, own in ((DIFFUSION, diffusion), (GAN, gan))
        for less, more in pairwise(own)
    }
    return found | {
        "FID of diffusion is below the GAN's at equal compute": above(gan[-1], diffusion[-1], "fid"),
        "FID of the GAN is below that of diffusion at equal compute": above(diffusion[-1], gan[-1], "fid"),
    }


def compute_charts(points: Points) -> dict[str, str]:
    series = [curve(name, of(points, network=name), "flops", "fid") for name in (DIFFUSION, GAN)]
    return {"fid": chart("FID by training compute", "FLOPs", "FID", series, log_x=True)}


def coverage_measure(lab: Lab) -> Points:
    return with_intervals([*diffusion_points(lab), *gan_points(lab)], paired=False)


def coverage_checks(points: Points) -> dict[str, bool]:
    diffusion, gans = of(points, network=DIFFUSION)[-1], of(points, network=GAN, truncation=None)
    truncated = of(points, network=GAN, truncation=TRUNCATIONS[0])[0]
    gan, equal = gans[-1], min(gans, key=lambda each: abs(value(each, "fid") - value(diffusion, "fid")))
    return {
        "recall of diffusion is higher than that of the GAN at the nearest FID": above(diffusion, equal, "recall"),
        "recall of diffusion is higher than the GAN's at equal compute": above(diffusion, gan, "recall"),
        "truncation lowers the GAN's recall": above(gan, truncated, "recall"),
        "truncation raises the GAN's precision": above(truncated, gan, "precision"),
    }


def coverage_charts(points: Points) -> dict[str, str]:
    gan = of(points, network=GAN)
    shown = {
        DIFFUSION: of(points, network=DIFFUSION),
        GAN: of(gan, truncation=None),
        "GAN, truncated": [of(gan, truncation=None)[-1], *(each for each in gan if each["truncation"] is not None)],
    }
    series = [
        Series(name, [Point(value(each, "fid"), value(each, "recall"), label=label_of(each)) for each in own])
        for name, own in shown.items()
    ]
    return {"recall": chart("recall against FID", "FID", "recall", series, log_x=True)}


def label_of(each: dict[str, object]) -> str:
    """The label of a point."""
    truncated = f", truncation {each['truncation']}" if each.get("truncation") else ""
    return f"{each['network']}, {each['flops']:.2g} FLOPs{truncated}"


COMPUTE = Row(
    13,
    "compute",
    "FID of the best GAN is reached at a fraction of the training compute.",
    "Table 10, V100-days: ImageNet 128, ADM-G 5.67 after 63 and 3.09 after 530, BigGAN-deep 6.02 after 64 to 128.",
    compute_measure,
    compute_checks,
    compute_charts,
)
COVERAGE = Row(
    6,
    "coverage",
    "Diffusion covers more of the data than a GAN of equal FID: its recall is higher.",
    "Table 5: ImageNet 128, recall 0.59 of ADM-G and 0.65 of ADM (FID 5.91) against 0.35 of BigGAN-deep (6.02).",
    coverage_measure,
    coverage_checks,
    coverage_charts,
)
