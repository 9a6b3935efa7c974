"""Feature extractors: networks that turn pictures into the features of the metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluation.inception_score import class_probabilities
from evaluation.judging import judged_input
from models.checkpoints.network_file import load_network
from models.networks.dinov2 import load_dinov2, normalised
from models.networks.inception import CLASSES, FEATURES, SPATIAL_CHANNELS, SPATIAL_PLACES, load_inception, resized
from models.networks.judge import Judge
from models.stack import file_hash

INCEPTION = "inception"
RESIZED_BATCH = 16  # images at 299x299 or 224x224 in one batch; Inception's first layers take about 200 MB
RENDERED_SIZE = 32  # of renders for an extractor that takes any size
SHIPPED_JUDGE = Path(__file__).parents[1] / "weights" / "demo" / "judge.safetensors"


@dataclass(frozen=True)
class Features:
    """Features of N images: pooled [N, D]; spatial [N, S] for sFID; probabilities [N, C] for the Inception Score.

    An extractor without spatial features or without classes has None there.
    """

    pooled: Tensor
    spatial: Tensor | None
    probabilities: Tensor | None


OUTPUTS = {"pooled": "features", "spatial": "spatial_features", "probabilities": "classes"}
"""The fields of Features, and the names of their sizes in an extractor's identity."""


class Extractor(Protocol):
    """Turns pictures into features.

    identity: name, file, SHA-256 of the weights, and the sizes of its outputs: features, spatial_features, classes,
    which are 0 for outputs that it lacks.
    image_size: the smallest edge of its pictures in pixels, and the default size of renders.
    """

    identity: dict[str, Any]
    image_size: int

    def __call__(self, pixels: Tensor) -> Features:
        """Features of images [N, 3, H, W] of uint8, float32. Raises: ValueError for unsupported images."""


class JudgeExtractor:
    """A judge: pooled features are the mean over its last map, spatial ones the map itself, by position.

    The official evaluator uses a few channels of a 17x17 map in the middle of Inception; the judge's last map has 2x2
    places for 32x32 pixels, and all its channels are used.
    """

    def __init__(self, path: Path) -> None:
        """Raises: WeightsError, one line, if the file is not a judge."""
        self._judge = load_network(path, Judge)
        config = self._judge.config
        self.image_size = config.image_size
        self.identity: dict[str, Any] = {
            "name": "judge",
            "file": path.name,
            "sha256": file_hash(path),
            "image_size": config.image_size,
            "features": config.widths[-1],
            "spatial_features": config.widths[-1] * (config.image_size >> len(config.widths)) ** 2,
            "classes": config.num_classes,
        }

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Features of images [N, 3, H, W] of uint8. Raises: ValueError for images that are not square or too small."""
        height, width = pixels.shape[2:]
        if height != width or width < self.image_size:
            side = self.image_size
            raise ValueError(f"images are {width}x{height}; the judge takes squares of {side}x{side} pixels or more")
        maps = self._judge.stages(judged_input(self._judge, pixels))
        pooled = maps.mean(dim=(2, 3))
        probabilities = self._judge.head(pooled).softmax(dim=1)
        return Features(pooled, maps.permute(0, 2, 3, 1).flatten(1), probabilities)


class InceptionExtractor:
    """The Inception of FID, as in ADM's official evaluator: pooled features, spatial ones of mixed_6/conv, and classes
    without the last layer's bias."""

    def __init__(self, path: Path) -> None:
        """Raises: WeightsError, one line, if the file is not FID's Inception."""
        self._network = load_inception(path)
        self.image_size = RENDERED_SIZE
        self.identity: dict[str, Any] = {
            "name": INCEPTION,
            "file": path.name,
            "sha256": file_hash(path),
            "features": FEATURES,
            "spatial_features": SPATIAL_CHANNELS * SPATIAL_PLACES,
            "classes": CLASSES,
        }

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Features of images [N, 3, H, W] of uint8. Raises: ValueError for images that are not square."""
        refuse_oblong(pixels)
        parts = [self._network(resized(part)) for part in pixels.split(RESIZED_BATCH)]
        pooled, spatial = (torch.cat(each) for each in zip(*parts, strict=True))
        return Features(pooled, spatial, class_probabilities(pooled, self._network.fc.weight.T))


class DinoV2Extractor:
    """A vision transformer of DINOv2, which has only pooled features, and no classes. They agree better with people's
    judgement than Inception's (Stein et al. 2023)."""

    def __init__(self, path: Path) -> None:
        """Raises: WeightsError, one line, if the file is not a DINOv2 without registers."""
        self._network = load_dinov2(path)
        self.image_size = RENDERED_SIZE
        self.identity: dict[str, Any] = {
            "name": "dinov2",
            "file": path.name,
            "sha256": file_hash(path),
            "features": self._network.size.width,
            "spatial_features": 0,
            "classes": 0,
        }

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        """Features of images [N, 3, H, W] of uint8. Raises: ValueError for images that are not square."""
        refuse_oblong(pixels)
        return Features(
            torch.cat([self._network(normalised(part)) for part in pixels.split(RESIZED_BATCH)]), None, None
        )


def refuse_oblong(pixels: Tensor) -> None:
    """Raises: ValueError for images [N, C, H, W] that are not square."""
    height, width = pixels.shape[2:]
    if height != width:
        raise ValueError(f"images are {width}x{height}; squares are needed")


EXTRACTORS: dict[str, Callable[[Path], Extractor]] = {
    "judge": JudgeExtractor,
    INCEPTION: InceptionExtractor,
    "dinov2": DinoV2Extractor,
}


def load_extractor(name: str) -> Extractor:
    """The extractor of an option: "judge", which is shipped, or KIND:FILE. Raises: ValueError; WeightsError."""
    kind, _, file = name.partition(":")
    if name == "judge":
        return JudgeExtractor(SHIPPED_JUDGE)
    if kind not in EXTRACTORS or not file:
        known = ", ".join(f"{each}:FILE" for each in EXTRACTORS)
        raise ValueError(f"--extractor {name}: there is no such extractor; there are judge, {known}")
    return EXTRACTORS[kind](Path(file))
