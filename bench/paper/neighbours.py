"""Row 11: samples are not copies of training images."""

import torch
from torch import Tensor

from bench.paper.core import Cell, Lab
from bench.paper.row import Points, Row
from evaluation.features import Points as FeaturePoints
from evaluation.plots import Point, Series, chart
from evaluation.precision_recall import BLOCK, blocks_of_distances

SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


def measure(lab: Lab) -> Points:
    scale = lab.subject.pipeline(conditional=True).guidance_scale
    training = lab.subject.training()
    sets = {
        "samples": lab.pixels(Cell(scale, "ddim", 25)),
        "held out": lab.subject.held_out(lab.images)[0],
    }
    known = {"judge": lab.features(training).pooled, "pixels": training.flatten(1).float() / 255}
    points = []
    for name, pixels in sets.items():
        own = {"judge": lab.features(pixels).pooled, "pixels": pixels.flatten(1).float() / 255}
        for space, features in own.items():
            distances = nearest(features, known[space])
            quantiles = distances.quantile(torch.tensor(SHARES, dtype=torch.float64)).tolist()
            points.append(
                {"set": name, "space": space, "quantiles": dict(zip(map(str, SHARES), quantiles, strict=True))}
            )
    return points


def nearest(features: Tensor, known: Tensor) -> Tensor:
    """The distance of each image to the nearest known one: [N]."""
    rows, columns = FeaturePoints(features), FeaturePoints(known)
    return torch.cat([each.amin(dim=1) for each in blocks_of_distances(rows, columns, BLOCK)]).clamp(min=0).sqrt()


def checks(points: Points) -> dict[str, bool]:
    found = {}
    for space in ("judge", "pixels"):
        samples, held_out = (
            next(each for each in points if each["set"] == name and each["space"] == space)["quantiles"]
            for name in ("samples", "held out")
        )
        found[f"{space}: no sample is nearer than half of the 1 % quantile of held-out distances"] = (
            samples["0.0"] >= 0.5 * held_out["0.01"]
        )
        found[f"{space}: the median distance of samples is at least 0.9 of that of held-out images"] = (
            samples["0.5"] >= 0.9 * held_out["0.5"]
        )
    return found


def charts(points: Points) -> dict[str, str]:
    drawn = {}
    for space in ("judge", "pixels"):
        series = [
            Series(each["set"], [Point(distance, float(share)) for share, distance in each["quantiles"].items()])
            for each in points
            if each["space"] == space
        ]
        drawn[space] = chart(f"distance to the nearest training image ({space})", "distance", "share of images", series)
    return drawn


NEIGHBOURS = Row(
    11,
    "neighbours",
    "Nearest neighbours in the training set show that samples are not copies.",
    "Appendix C, as pictures.",
    measure,
    checks,
    charts,
)
