"""Opens a run's data, and divides them into training and held-out images."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.entries import Entry, find_entries, is_of_files
from datasets.idx import find_idx, of_one_file, read_labelled
from datasets.image_folder import decoded, label_entries, read_folder
from datasets.listing import Labels, Skipped
from datasets.pictures import read_npz
from datasets.shapes import render_set
from models.checkpoints.presets import SHAPE_NAMES
from training.config import ConfigError
from training.images import Images, ImagesInMemory, ImagesOnDisk
from training.sections import Data
from vocabulary.counts import counted

MEMORY_BYTES = 2**31  # largest set of decoded pixels in memory; images of a larger set are decoded at every use
TRAINING_SEED = 1  # of rendered training images; measurements render other seeds
MOST_CLASSES = 100_000  # each class has a row in the network, and a name
SHOWN_SKIPPED = 20  # skipped files that are printed one by one
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""Classes of Fashion-MNIST (Xiao et al. 2017), by label."""


@dataclass(frozen=True)
class Split:
    """The training images, and the held-out images, which may be empty."""

    training: Images
    held_out: Images


def open_data(settings: Data, image_size: int, cache: Path) -> Split:
    """The images of a run at its size. Raises: ConfigError if they cannot be read or do not fit the network."""
    whole, held_out = _open(settings, image_size, cache)
    if not settings.labelled:
        whole = whole.without_classes()
    if bool(held_out.all()):
        raise ConfigError(f"data.held_out_below = {settings.held_out_below} leaves no image to train on")
    kept = whole.select((~held_out).nonzero()[:, 0]) if bool(held_out.any()) else whole
    return Split(kept, whole.select(held_out.nonzero()[:, 0]))


def _open(settings: Data, image_size: int, cache: Path) -> tuple[Images, Tensor]:
    """All images, and whether each is held out: [N]."""
    if settings.source == "shapes":
        images, labels = render_set(settings.count, TRAINING_SEED, image_size, cache=cache)
        return ImagesInMemory(images, labels, SHAPE_NAMES), _held_out(
            settings, (each.numpy() for each in images), len(images)
        )
    assert settings.path is not None
    path = Path(settings.path)
    try:
        if is_of_files(path):
            return _read_pictures(path, settings, image_size)
        if path.is_dir():
            return _read_idx(find_idx(path), settings, image_size)
        if path.suffix == ".npz":
            return _read_npz(path, settings, image_size)
        return _read_idx(of_one_file(path), settings, image_size)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data.path: {error}") from error


def _held_out(settings: Data, stored: Iterable[bytes | np.ndarray], count: int) -> Tensor:
    """Return whether each image's stored bytes hash to a first byte below the setting: [N]."""
    if not settings.held_out_below:
        return torch.zeros(count, dtype=torch.bool)
    hashes = [hashlib.sha256(each if isinstance(each, bytes) else each.tobytes()).digest()[0] for each in stored]
    return torch.tensor(hashes) < settings.held_out_below


def _read_pictures(path: Path, settings: Data, image_size: int) -> tuple[Images, Tensor]:
    """Pictures of a folder or an archive; decoded once if they fit in memory and are not cropped at random."""
    entries, skipped = find_entries(path)
    by_path = {each.path: each for each in entries}
    whole: Images
    if settings.random_crop or len(entries) * 3 * image_size**2 > MEMORY_BYTES:
        labels = _labels_of_undecoded(path, entries, skipped, settings)
        kept = [by_path[each] for each in labels.files]
        whole = ImagesOnDisk(kept, torch.tensor(labels.labels), labels.classes, image_size, settings.padding)
    else:
        reading = read_folder(path, image_size - 2 * settings.padding, settings.labels_from)
        _report(path, reading.lines(), reading.skipped, reading.labels, settings)
        kept = [by_path[each] for each in reading.labels.files]
        images = F.pad(reading.images, (settings.padding,) * 4)
        whole = ImagesInMemory(images, torch.tensor(reading.labels.labels), reading.labels.classes)
    return whole, _held_out(settings, (_content(each) for each in kept), len(kept))


def _labels_of_undecoded(path: Path, entries: Sequence[Entry], skipped: list[Skipped], settings: Data) -> Labels:
    """The labels of pictures that are decoded at every use; a file counts as a picture by the suffix of its name.

    With data.strict, every file is decoded here once instead.
    """
    check = decoded if settings.strict else _named_as_picture
    pictures, skipped = list[Entry](), list(skipped)
    for each in entries:
        if isinstance(outcome := check(each), Skipped):
            skipped.append(outcome)
        else:
            pictures.append(each)
    labels = label_entries(path, pictures, settings.labels_from)
    skipped += labels.skipped
    if not labels.files:
        raise ValueError(f"{path}: has no pictures")
    found = f"{counted(len(labels.files), 'picture')}, {counted(len(labels.classes), 'class')}"
    left_out = f"; {counted(len(skipped), 'file')} skipped" if skipped else ""
    _report(path, [f"{found}; {labels.rule}; decoded at every use{left_out}"], skipped, labels, settings)
    return labels


def _named_as_picture(entry: Entry) -> Entry | Skipped:
    """The entry, or the reason why it is left out although it was not decoded."""
    if entry.path.suffix.lower() in Image.registered_extensions():
        return entry
    return Skipped(entry.path, "its name does not have the suffix of a picture")


def _content(entry: Entry) -> bytes:
    with entry.open() as file:
        return file.read()


def _report(path: Path, lines: Iterable[str], skipped: Sequence[Skipped], labels: Labels, settings: Data) -> None:
    """Print a summary of a set. Raises: ValueError for findings that data.strict refuses."""
    if settings.strict and (skipped or labels.alike):
        wrong = [f"{each.path.name} {each.reason}" for each in skipped]
        wrong += [f"classes that differ in case alone: {', '.join(labels.alike)}"] * bool(labels.alike)
        raise ValueError(f"{path}: data.strict allows none of this: {wrong[0]} ({len(wrong)} in all)")
    for line in (*lines, *(f"skipped: {each.path}: {each.reason}" for each in skipped[:SHOWN_SKIPPED])):
        print(line, flush=True)


def _read_idx(paths: Sequence[Path], settings: Data, image_size: int) -> tuple[Images, Tensor]:
    if not paths:
        raise ValueError(f"{settings.path}: has no pictures, and no idx files of the MNIST family")
    stored, labels = read_labelled(paths)
    _check_count(paths[0], len(stored))
    images = F.pad(torch.from_numpy(stored)[:, None].expand(-1, 3, -1, -1), (settings.padding,) * 4)
    _check_size(paths[0], images, image_size)
    count = int(labels.max()) + 1
    is_fashion = "fashion" in str(paths[0]) and count == len(FASHION_NAMES)
    names = FASHION_NAMES if is_fashion else tuple(map(str, range(count)))
    whole = ImagesInMemory(images, torch.from_numpy(labels.astype(np.int64)), names)
    return whole, _held_out(settings, stored, len(stored))


def _read_npz(path: Path, settings: Data, image_size: int) -> tuple[Images, Tensor]:
    stored, labels = read_npz(path)
    _check_count(path, len(stored))
    images = F.pad(torch.from_numpy(stored).permute(0, 3, 1, 2), (settings.padding,) * 4).contiguous()
    _check_size(path, images, image_size)
    if settings.labelled and labels is None:
        raise ValueError(f"{path}: has no labels (arr_1); set data.labelled = false")
    if labels is not None and labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"{path}: arr_1 has the label {labels.max()}; labels count the classes, {MOST_CLASSES} at most"
        )
    found = np.zeros(len(stored), np.int64) if labels is None else labels.astype(np.int64)
    whole = ImagesInMemory(images, torch.from_numpy(found), tuple(map(str, range(int(found.max()) + 1))))
    return whole, _held_out(settings, stored, len(stored))


def _check_count(path: Path, count: int) -> None:
    if count == 0:
        raise ValueError(f"{path}: has no images")


def _check_size(path: Path, images: Tensor, image_size: int) -> None:
    height, width = images.shape[2:]
    if (height, width) != (image_size, image_size):
        raise ValueError(
            f"{path}: its images are {width}x{height} with their padding, where network.image_size is {image_size}"
        )


def balance(class_labels: Tensor, class_names: Sequence[str]) -> dict[str, int]:
    """The number of images of each class."""
    return {name: int((class_labels == label).sum()) for label, name in enumerate(class_names)}
