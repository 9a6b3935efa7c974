"""Row 9: guidance and upsampling help on different axes, and combine."""

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.core import REFERENCE_IMAGES, Cell, Lab
from bench.paper.row import Points, Row, above
from bench.paper.subject import REFERENCE_SEED
from datasets.shapes import render_set
from evaluation.judging import sharpness
from evaluation.plots import Point, Series, chart

SCALE, LARGE, CROP = 4.0, 64, 32
KINDS = ("base", "guided", "upsampled", "both")


def cropped(pixels: Tensor) -> Tensor:
    """The middle 32x32 pixels, because the judge reduces a larger image and then lacks the details of an upsampler."""
    edge = (pixels.shape[-1] - CROP) // 2
    return pixels[..., edge : edge + CROP, edge : edge + CROP]


def enlarged(pixels: Tensor) -> Tensor:
    """Images enlarged bicubically."""
    large = F.interpolate(pixels.float(), (LARGE, LARGE), mode="bicubic")
    return large.round().clamp(0, 255).to(torch.uint8)


def measure(lab: Lab) -> Points:
    renders = render_set(REFERENCE_IMAGES, REFERENCE_SEED, LARGE)[0]
    details = lab.features(cropped(renders))
    points = []
    for kind in KINDS:
        cell = Cell(SCALE if kind in ("guided", "both") else 0.0, upsample=kind in ("upsampled", "both"))
        pixels = lab.pixels(cell)
        large = pixels if cell.upsample else enlarged(pixels)
        whole = lab.scores(lab.features(large), lab.features(renders))
        detail = lab.scores(lab.features(cropped(large)), details)
        metrics = whole | {f"detail_{name}": each for name, each in detail.items()}
        figures = {name: asdict(each) for name, each in metrics.items()}
        points.append(asdict(cell) | {"kind": kind, "sharpness": sharpness(large), "metrics": figures})
    return [*points, {"kind": "renders", "sharpness": sharpness(renders), "metrics": {}}]


def checks(points: Points) -> dict[str, bool]:
    base, guided, upsampled, both, _ = points
    return {
        "guidance raises precision": above(guided, base, "precision"),
        "upsampling lowers the FID of details": above(base, upsampled, "detail_fid"),
        "upsampling keeps recall": not above(base, upsampled, "recall"),
        "both have the lowest FID of details": all(
            each["metrics"]["detail_fid"]["value"] >= both["metrics"]["detail_fid"]["value"] for each in points[:3]
        ),
    }


def charts(points: Points) -> dict[str, str]:
    drawn = {}
    for metric in ("fid", "detail_fid", "precision", "recall"):
        bars = []
        for place, each in enumerate(points[:-1]):
            figure = each["metrics"][metric]
            bars.append(
                Series(each["kind"], [Point(place, figure["value"], figure["low"], figure["high"], each["kind"])])
            )
        drawn[metric] = chart(f"{metric} of the four ways to 64x64", "", metric, bars)
    return drawn


STAGES = Row(
    9,
    "stages",
    "Guidance and upsampling help on different axes, and combine.",
    "ImageNet 256: base 10.94, guided 4.59, upsampled 7.49, both 3.94 (Table 6).",
    measure,
    checks,
    charts,
)
