"""What a run is trained on: the rendered shapes, or a folder of one's own images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets.image_folder import Reading, read_folder
from datasets.listing import LabelsFrom
from datasets.shapes import render_set
from diffusion.pixels import from_uint8
from models.presets import SHAPE_NAMES

TRAINING_SEED = 1  # of the renders trained on; measurements render other seeds


@dataclass(frozen=True)
class LabelledImages:
    """A whole set in memory, or mapped from disk: images [N, 3, H, W] uint8, class_labels [N] int64."""

    images: Tensor
    class_labels: Tensor
    class_names: tuple[str, ...]
    flip: bool = False  # each image of a batch, or not, as the official scripts do

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch: images in [-1, 1] float32 and their labels."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        images = from_uint8(self.images[index])
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = images.where(~mirrored[:, None, None, None], images.flip(3))
        return images, self.class_labels[index]


def rendered_shapes(count: int, image_size: int, cache: Path) -> LabelledImages:
    """A set of renders, kept in the cache folder."""
    images, labels = render_set(count, TRAINING_SEED, image_size, cache=cache)
    return LabelledImages(images, labels, SHAPE_NAMES)


def own_images(
    folder: Path, image_size: int, labels_from: LabelsFrom = "auto", *, strict: bool = False
) -> tuple[LabelledImages, Reading]:
    """Every picture of a folder, centre-cropped, and what was read of it.

    Raises: ValueError for what is no folder, and for one without pictures; if strict, also for one in which a file is
    skipped, or in which class names differ in case alone.
    """
    reading = read_folder(folder, image_size, labels_from)
    if strict and reading.skipped:
        first = reading.skipped[0]
        raise ValueError(
            f"{first.path}: {first.reason}; --strict allows no such file, of which there are {len(reading.skipped)}"
        )
    if strict and reading.labels.alike:
        raise ValueError(
            f"{folder}: --strict allows no classes that differ in case alone: {', '.join(reading.labels.alike)}"
        )
    labels = torch.tensor(reading.labels.labels)
    return LabelledImages(reading.images, labels, reading.labels.classes, flip=True), reading
