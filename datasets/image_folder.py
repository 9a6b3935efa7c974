"""Reads a folder of pictures for training.

The reductions, the order of the files and the random draws' distributions are those of guided-diffusion (MIT,
`guided_diffusion/image_datasets.py`). Modes, orientation and transparency are handled as in uploads
(`pictures.decoding`), and a class may also be a folder (`datasets.listing`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.entries import CLASS_FILE, Entry, find_entries
from datasets.listing import Labels, LabelsFrom, Skipped, label_pictures, labels_of
from pictures.decoding import PictureError, decode
from pictures.reduction import halved
from vocabulary.counts import counted

SHOWN = 20  # most class names in a line
MIN_CROP_FRACTION = 0.8  # smallest share of the reduced picture's short side in a random crop


def center_crop(image: Image.Image, image_size: int) -> Image.Image:
    """The middle square of a picture, reduced so that its short side is image_size pixels."""
    reduced = reduce_to(image, image_size)
    left, top = (reduced.width - image_size) // 2, (reduced.height - image_size) // 2
    return reduced.crop((left, top, left + image_size, top + image_size))


def square_pixels(image: Image.Image, image_size: int) -> Tensor:
    """The middle square of an RGB picture as pixels [3, image_size, image_size], uint8."""
    return torch.from_numpy(np.array(center_crop(image, image_size))).permute(2, 0, 1).contiguous()


def random_crop(image: Image.Image, image_size: int, generator: np.random.Generator) -> Image.Image:
    """A random window of a picture, after reduction to a random short side of up to image_size / 0.8."""
    shortest, longest = image_size, math.ceil(image_size / MIN_CROP_FRACTION)
    reduced = reduce_to(image, int(generator.integers(shortest, longest, endpoint=True)))
    top = int(generator.integers(0, reduced.height - image_size, endpoint=True))
    left = int(generator.integers(0, reduced.width - image_size, endpoint=True))
    return reduced.crop((left, top, left + image_size, top + image_size))


def reduce_to(image: Image.Image, short_side: int) -> Image.Image:
    """Halve by box filter while that is possible, then resize bicubically until the short side is exact.

    A bicubic filter alone would alias at large reductions in older Pillow versions.
    """
    image = halved(image, short_side)
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Reading:
    """The pictures of a folder, and the skipped files. Shapes: images [N, 3, image_size, image_size], uint8 RGB."""

    images: Tensor
    labels: Labels
    skipped: tuple[Skipped, ...]

    def lines(self) -> Iterator[str]:
        """A summary for the user, one sentence per line, without the names of skipped files."""
        counts = Counter(self.labels.labels)
        named = [f"{name} {counts[index]}" for index, name in enumerate(self.labels.classes)]
        more = f", and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        classes = f"{counted(len(named), 'class')} ({', '.join(named[:SHOWN])}{more})"
        yield f"{counted(len(self.images), 'image')}, {classes}; {self.labels.rule}"
        if self.labels.alike:
            yield f"classes that differ in case alone: {', '.join(self.labels.alike)}"
        if self.skipped:
            yield f"{counted(len(self.skipped), 'file')} skipped"


def decoded(entry: Entry) -> Image.Image | Skipped:
    """The picture of a file, or the reason why it has none."""
    try:
        with entry.open() as file:
            return decode(file)
    except PictureError as error:
        return Skipped(entry.path, str(error))
    except OSError as error:
        return Skipped(entry.path, f"cannot be opened: {error.strerror}")


def read_folder(folder: Path, image_size: int, labels_from: LabelsFrom = "auto") -> Reading:
    """Decode every picture of a folder or an archive and take its middle square; skip other files with the reason.

    Raises: ValueError if the path is not a folder or an archive, or has no picture.
    """
    entries, skipped = find_entries(folder)
    squares: dict[Path, Tensor] = {}
    for entry in entries:
        picture = decoded(entry)
        if isinstance(picture, Skipped):
            skipped.append(picture)
        else:
            squares[entry.path] = square_pixels(picture, image_size)
    labels = label_entries(folder, [each for each in entries if each.path in squares], labels_from)
    skipped += labels.skipped
    if not labels.files:
        first = f"; {skipped[0].path.name} {skipped[0].reason}" if skipped else ""
        raise ValueError(f"{folder}: has no pictures ({counted(len(skipped), 'file')} skipped{first})")
    return Reading(torch.stack([squares[file] for file in labels.files]), labels, tuple(skipped))


def label_entries(folder: Path, entries: Sequence[Entry], labels_from: LabelsFrom = "auto") -> Labels:
    """The classes of pictures: from shards if all have one, or else by folder or name."""
    given = {each.path: each.class_name for each in entries if each.class_name is not None}
    files = [each.path for each in entries]
    if files and len(given) == len(files):
        return labels_of(files, given, f"a class for each text in the {CLASS_FILE} files", "")
    return label_pictures(folder, files, labels_from)
