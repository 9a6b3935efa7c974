"""A folder of image files, read as guided-diffusion reads one (`guided_diffusion/image_datasets.py`, MIT).

The reductions, the order of the files, the labels and the random draws' distributions are the official ones, so that a
model trained here sees what the published ones saw.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pictures.decoding import decode
from pictures.reduction import halved

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif"})
MIN_CROP_FRACTION = 0.8  # of the reduced picture's short side that a random crop keeps at least


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder: entries of each folder in sorted order, a subfolder's where it stands."""
    found: list[Path] = []
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            found += find_images(entry)
        elif entry.suffix.lower() in SUFFIXES:
            found.append(entry)
    return found


def labels_from_names(files: list[Path]) -> tuple[list[int], list[str]]:
    """Class label of each file, and the class names: the text before a name's first "_", numbered in sorted order."""
    names = [file.name.split("_")[0] for file in files]
    classes = sorted(set(names))
    number = {name: index for index, name in enumerate(classes)}
    return [number[name] for name in names], classes


def center_crop(image: Image.Image, image_size: int) -> Image.Image:
    """The middle square of a picture, reduced so that its short side is image_size pixels."""
    reduced = reduce_to(image, image_size)
    left, top = (reduced.width - image_size) // 2, (reduced.height - image_size) // 2
    return reduced.crop((left, top, left + image_size, top + image_size))


def square_pixels(image: Image.Image, image_size: int) -> Tensor:
    """The middle square of an RGB picture as pixels [3, image_size, image_size], uint8."""
    return torch.from_numpy(np.array(center_crop(image, image_size))).permute(2, 0, 1).contiguous()


def random_crop(image: Image.Image, image_size: int, generator: np.random.Generator) -> Image.Image:
    """A random window of a picture that was reduced to a random short side, up to image_size / 0.8."""
    shortest, longest = image_size, math.ceil(image_size / MIN_CROP_FRACTION)
    reduced = reduce_to(image, int(generator.integers(shortest, longest, endpoint=True)))
    top = int(generator.integers(0, reduced.height - image_size, endpoint=True))
    left = int(generator.integers(0, reduced.width - image_size, endpoint=True))
    return reduced.crop((left, top, left + image_size, top + image_size))


def reduce_to(image: Image.Image, short_side: int) -> Image.Image:
    """Halve by box filter while that is possible, then resize bicubically until the short side is exact.

    A bicubic filter alone, taken over many pixels at once, would alias in older Pillow versions.
    """
    image = halved(image, short_side)
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """One process's share of a folder: items are ([3, image_size, image_size] uint8 RGB, class label).

    Labels are 0 and `classes` is empty unless `labelled`. With `augment_crop` or `flip` an item changes at every
    visit; what is drawn comes from torch's generator, so that the workers of a data loader draw apart.
    Raises: ValueError for what is no folder, a folder without images, or a rank that gets none.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int,
        *,
        labelled: bool = False,
        augment_crop: bool = False,
        flip: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        files = find_images(folder)
        if not files:
            raise ValueError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")
        self.classes: list[str] = []
        labels = [0] * len(files)
        if labelled:
            # numbered over the whole folder: a class has one label in every process
            labels, self.classes = labels_from_names(files)
        self.files, self.labels = files[rank::world_size], labels[rank::world_size]
        if not self.files:
            raise ValueError(f"{folder} has {len(files)} images, none of them for rank {rank} of {world_size}")
        self.image_size, self.augment_crop, self.flip = image_size, augment_crop, flip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = decode(self.files[index])
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        if self.augment_crop:
            image = random_crop(image, self.image_size, generator)
        else:
            image = center_crop(image, self.image_size)
        pixels = np.array(image)
        if self.flip and generator.random() < 0.5:  # after the crop, as the official code draws them
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self.labels[index]
