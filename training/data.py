"""What a run is trained on: the rendered shapes, or a folder of one's own images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datasets.image_folder import ImageFolder
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

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch: images in [-1, 1] float32 and their labels."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        return from_uint8(self.images[index]), self.class_labels[index]


def rendered_shapes(count: int, image_size: int, cache: Path) -> LabelledImages:
    """A set of renders, kept in the cache folder."""
    images, labels = render_set(count, TRAINING_SEED, image_size, cache=cache)
    return LabelledImages(images, labels, SHAPE_NAMES)


def own_images(folder: Path, image_size: int) -> LabelledImages:
    """Every image of a folder, centre-cropped; classes are the file names' text before the first "_".

    Raises: ValueError for what is no folder, and for a folder without images.
    """
    files = ImageFolder(folder, image_size, labelled=True, flip=False)
    items = [files[index] for index in range(len(files))]
    labels = torch.tensor([label for _, label in items])
    return LabelledImages(torch.stack([image for image, _ in items]), labels, tuple(files.classes))
