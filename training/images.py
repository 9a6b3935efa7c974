"""Training images with their classes: in memory at the network's size, or decoded at every use."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.entries import Entry
from datasets.image_folder import center_crop, random_crop
from pictures.decoding import PictureError, decode

MIN_CROP_SHARE = 0.8  # smallest share of an image's edge in a random crop, as in the official training
HASHED_AT_ONCE = 1000  # images whose bytes are copied for their hash


class Images(Protocol):
    """A set: class_labels [N] int64; without classes the labels are 0 and class_names is empty."""

    @property
    def class_labels(self) -> Tensor: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def fingerprint(self) -> str:
        """A hash that identifies the set."""

    def __len__(self) -> int: ...

    def pixels(self, index: int, crop: np.random.Generator | None) -> Tensor:
        """An image [3, S, S] uint8, its middle or, with a generator, a random crop of it."""

    def select(self, index: Tensor) -> Self:
        """The images at these indices."""

    def without_classes(self) -> Self:
        """The same images, all with label 0."""


@dataclass(frozen=True)
class ImagesInMemory:
    """images [N, 3, S, S] uint8, in memory or mapped from disk."""

    images: Tensor
    class_labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, index: int, crop: np.random.Generator | None) -> Tensor:
        pixels = self.images[index]
        return pixels if crop is None else _crop(pixels, crop)

    def select(self, index: Tensor) -> "ImagesInMemory":
        return ImagesInMemory(self.images[index], self.class_labels[index], self.class_names)

    def without_classes(self) -> "ImagesInMemory":
        return ImagesInMemory(self.images, torch.zeros_like(self.class_labels), ())

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.class_labels.numpy().tobytes())
        for part in self.images.split(HASHED_AT_ONCE):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImagesOnDisk:
    """Pictures that are decoded at every use, for sets larger than memory, and for crops of whole pictures.

    A damaged picture is reported once and replaced by the next one.
    """

    entries: Sequence[Entry]
    class_labels: Tensor
    class_names: tuple[str, ...]
    image_size: int
    padding: int
    _damaged: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.entries)

    def pixels(self, index: int, crop: np.random.Generator | None) -> Tensor:
        for place in range(len(self.entries)):
            number = (index + place) % len(self.entries)
            entry = self.entries[number]
            try:
                with entry.open() as file:
                    picture = decode(file)
            except (PictureError, OSError) as error:
                if number not in self._damaged:
                    self._damaged.add(number)
                    print(f"skipped: {entry.path}: {error}", flush=True)
                continue
            inner = self.image_size - 2 * self.padding
            square = center_crop(picture, inner) if crop is None else random_crop(picture, inner, crop)
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
            return F.pad(pixels, (self.padding,) * 4).contiguous()
        raise ValueError("none of the pictures can be decoded")

    def select(self, index: Tensor) -> "ImagesOnDisk":
        entries = [self.entries[each] for each in index.tolist()]
        return replace(self, entries=entries, class_labels=self.class_labels[index], _damaged=set())

    def without_classes(self) -> "ImagesOnDisk":
        return replace(self, class_labels=torch.zeros_like(self.class_labels), class_names=())

    @property
    def fingerprint(self) -> str:
        """A hash of the files' names in order, their labels and the class names; contents are not read."""
        digest = hashlib.sha256(repr((self.image_size, self.padding, self.class_names)).encode())
        digest.update(self.class_labels.numpy().tobytes())
        for entry in self.entries:
            digest.update(f"{entry.path}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _crop(pixels: Tensor, draws: np.random.Generator) -> Tensor:
    """A random square of an image [3, S, S], at least 0.8 of its edge, enlarged to the image's size."""
    size = pixels.shape[-1]
    edge = int(draws.integers(int(np.ceil(MIN_CROP_SHARE * size)), size, endpoint=True))
    top, left = (int(each) for each in draws.integers(0, size - edge, 2, endpoint=True))
    cropped = pixels[:, top : top + edge, left : left + edge][None].float()
    resized = F.interpolate(cropped, (size, size), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
