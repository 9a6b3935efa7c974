"""What a run is trained on: pictures of one size in memory or mapped from disk, their classes, and their split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.entries import ARCHIVES
from datasets.idx import find_idx, read_labelled
from datasets.image_folder import read_folder
from datasets.shapes import render_set
from models.presets import SHAPE_NAMES
from training.config import ConfigError, Data

TRAINING_SEED = 1  # of the renders trained on; measurements render other seeds
SHOWN_SKIPPED = 20  # files that a folder's reading names one by one
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Classes of Fashion-MNIST (Xiao et al. 2017), by label."""


@dataclass(frozen=True)
class LabelledImages:
    """images [N, 3, H, W] uint8, class_labels [N] int64; without classes the labels are 0 and class_names is empty."""

    images: Tensor
    class_labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor) -> "LabelledImages":
        return LabelledImages(self.images[index], self.class_labels[index], self.class_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the pictures, their labels and the names of the classes."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.class_labels.numpy().tobytes())
        for part in self.images.split(1000):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """The images that train, and those that are held out of training, which may be none."""

    training: LabelledImages
    held_out: LabelledImages


def open_data(settings: Data, image_size: int, cache: Path) -> Split:
    """The images of a run at its size. Raises: ConfigError for what cannot be read, or does not fit the network."""
    if settings.source == "shapes":
        images, labels = render_set(settings.count, TRAINING_SEED, image_size, cache=cache)
        whole, hashes = LabelledImages(images, labels, SHAPE_NAMES), None
    else:
        assert settings.path is not None
        whole, hashes = read_images(Path(settings.path), settings, image_size)
    if not settings.labelled:
        whole = LabelledImages(whole.images, torch.zeros(len(whole), dtype=torch.int64), ())
    held_out = _first_bytes(whole.images) if hashes is None else hashes
    chosen = held_out < settings.held_out_below
    if bool(chosen.all()):
        raise ConfigError(f"data.held_out_below = {settings.held_out_below} leaves no image to train on")
    if not bool(chosen.any()):
        return Split(whole, whole.select(chosen.nonzero()[:, 0]))
    return Split(whole.select((~chosen).nonzero()[:, 0]), whole.select(chosen.nonzero()[:, 0]))


def read_images(path: Path, settings: Data, image_size: int) -> tuple[LabelledImages, Tensor | None]:
    """Images of a folder, an archive, idx files or an official .npz; of idx files the first byte of each image's hash.

    Raises: ConfigError.
    """
    try:
        if path.is_dir() and (found := find_idx(path)):
            return _read_idx(found, settings, image_size)
        if path.is_dir() or path.suffix.lower() in ARCHIVES or not path.exists():
            return _read_folder(path, settings, image_size), None
        if path.suffix == ".npz":
            return _read_npz(path, settings, image_size), None
        return _read_idx([path], settings, image_size)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data.path: {error}") from error


def _read_folder(path: Path, settings: Data, image_size: int) -> LabelledImages:
    reading = read_folder(path, image_size - 2 * settings.padding, settings.labels_from)
    if settings.strict and (reading.skipped or reading.labels.alike):
        wrong = [f"{each.path.name} {each.reason}" for each in reading.skipped]
        wrong += [f"classes that differ in case alone: {', '.join(reading.labels.alike)}"] * bool(reading.labels.alike)
        raise ValueError(f"{path}: data.strict allows none of this: {wrong[0]} ({len(wrong)} in all)")
    for line in (
        *reading.lines(),
        *(f"skipped: {each.path}: {each.reason}" for each in reading.skipped[:SHOWN_SKIPPED]),
    ):
        print(line, flush=True)
    labels = torch.tensor(reading.labels.labels)
    return LabelledImages(_pad(reading.images, settings), labels, tuple(reading.labels.classes))


def _read_idx(paths: Sequence[Path], settings: Data, image_size: int) -> tuple[LabelledImages, Tensor]:
    stored, labels = read_labelled(paths)
    images = _pad(torch.from_numpy(stored)[:, None].expand(-1, 3, -1, -1), settings)
    _check_size(paths[0], images, image_size)
    count = int(labels.max()) + 1
    is_fashion = "fashion" in str(paths[0]) and count == len(FASHION_NAMES)
    hashes = torch.tensor([hashlib.sha256(each.tobytes()).digest()[0] for each in stored])
    names = FASHION_NAMES if is_fashion else _numbered(count)
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)), names), hashes


def _read_npz(path: Path, settings: Data, image_size: int) -> LabelledImages:
    with np.load(path, allow_pickle=False) as arrays:
        if "arr_0" not in arrays or arrays["arr_0"].ndim != 4 or arrays["arr_0"].dtype != np.uint8:
            raise ValueError(f"{path}: arr_0 is no array of images [N, H, W, 3], uint8")
        stored = arrays["arr_0"]
        labels = arrays.get("arr_1")
    images = _pad(torch.from_numpy(stored).permute(0, 3, 1, 2), settings)
    _check_size(path, images, image_size)
    if settings.labelled and labels is None:
        raise ValueError(f"{path}: has no labels (arr_1); set data.labelled = false")
    if labels is None:
        return LabelledImages(images, torch.zeros(len(images), dtype=torch.int64), ())
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)), _numbered(int(labels.max()) + 1))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(each) for each in range(count))


def _pad(images: Tensor, settings: Data) -> Tensor:
    return F.pad(images, (settings.padding,) * 4).contiguous()


def _check_size(path: Path, images: Tensor, image_size: int) -> None:
    height, width = images.shape[2:]
    if (height, width) != (image_size, image_size):
        raise ValueError(
            f"{path}: its images are {width}x{height} with their padding, where network.image_size is {image_size}"
        )


def _first_bytes(images: Tensor) -> Tensor:
    """The first byte of each image's SHA-256: [N]."""
    return torch.tensor([hashlib.sha256(each.numpy().tobytes()).digest()[0] for each in images])


def balance(class_labels: Tensor, class_names: Sequence[str]) -> dict[str, int]:
    """How many images each class has."""
    return {name: int((class_labels == label).sum()) for label, name in enumerate(class_names)}
