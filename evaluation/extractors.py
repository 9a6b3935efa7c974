"""Feature extractors: what turns pictures into the numbers that distributions are compared in."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.pictures import Pictures
from evaluation.judging import judged_input
from models.checkpoints.network_file import load_network
from models.networks.judge import Judge
from models.stack import file_hash

SHIPPED_JUDGE = Path(__file__).parents[1] / "weights" / "demo" / "judge.safetensors"


@dataclass(frozen=True)
class Features:
    """Of a set of N images: pooled [N, D] for all metrics but these: spatial [N, S] for sFID, probabilities [N, C]."""

    pooled: Tensor
    spatial: Tensor
    probabilities: Tensor


class JudgeExtractor:
    """A judge: features after the mean over its last map, spatial ones of that map itself, place after place.

    The official evaluator takes a few channels of a map in the middle of Inception, of 17x17 places; the judge's last
    map has 2x2 places for 32x32 pixels, and all of its channels are taken.
    """

    def __init__(self, path: Path) -> None:
        """Raises: WeightsError, one line, for another file than a judge's."""
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
        """Features of images [N, 3, H, W] of uint8. Raises: ValueError for images that are no squares, or too small."""
        height, width = pixels.shape[2:]
        if height != width or width < self.image_size:
            side = self.image_size
            raise ValueError(f"images are {width}x{height}; the judge takes squares of {side}x{side} pixels or more")
        maps = self._judge.stages(judged_input(self._judge, pixels))
        pooled = maps.mean(dim=(2, 3))
        probabilities = self._judge.head(pooled).softmax(dim=1)
        return Features(pooled, maps.permute(0, 2, 3, 1).flatten(1), probabilities)


def load_extractor(name: str) -> JudgeExtractor:
    """The extractor of an option: "judge", which is shipped, or judge:FILE. Raises: ValueError; WeightsError."""
    kind, _, file = name.partition(":")
    if kind != "judge" or (":" in name and not file):
        raise ValueError(f"--extractor {name}: there is no such extractor; there are judge and judge:FILE")
    return JudgeExtractor(Path(file) if file else SHIPPED_JUDGE)


def extract(
    pictures: Pictures, extractor: JudgeExtractor, on_images: Callable[[int], None]
) -> tuple[Features, dict[str, Any]]:
    """The features of a set, float32, and what the set was: images, their size, and a hash of all pixels in order.

    Raises: ValueError for fewer than 2 images and what reading raises.
    """
    parts: list[Features] = []
    digest = hashlib.sha256()
    size = ""
    for batch in pictures.batches:
        size = f"{batch.shape[3]}x{batch.shape[2]}"
        digest.update(batch.contiguous().numpy().tobytes())
        parts.append(extractor(batch))
        on_images(len(batch))
    count = sum(len(each.pooled) for each in parts)
    if count < 2:
        raise ValueError(f"{count} images are too few: a distribution needs 2 at least")
    whole = Features(
        torch.cat([each.pooled for each in parts]),
        torch.cat([each.spatial for each in parts]),
        torch.cat([each.probabilities for each in parts]),
    )
    found = {"images": count, "size": size, "sha256": digest.hexdigest()}
    return whole, found
