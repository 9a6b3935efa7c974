"""Surveys a set of training images before training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.entries import find_entries, is_of_files
from datasets.idx import find_idx, of_one_file, read_labelled
from datasets.image_folder import label_entries
from datasets.listing import LabelsFrom, Skipped
from datasets.pictures import read_labels, read_npz
from pictures.decoding import PictureError, decode
from vocabulary.counts import counted

SHOWN_PER_CLASS = 5


@dataclass(frozen=True)
class Survey:
    """Images by class and by size; skipped: pictures that cannot be used; ignored: other files.

    alike: classes whose names differ only in case. shown: some images of each class, by its name.
    """

    images: int
    classes: dict[str, int]
    sizes: dict[str, int]
    skipped: tuple[Skipped, ...]
    ignored: tuple[Path, ...]
    rule: str
    alike: tuple[str, ...]
    shown: dict[str, list[Image.Image]]

    def report(self) -> dict[str, Any]:
        """The survey as JSON."""
        return {
            "images": self.images,
            "classes": self.classes,
            "sizes": self.sizes,
            "skipped": [{"file": str(each.path), "reason": each.reason} for each in self.skipped],
            "ignored": [str(each) for each in self.ignored],
            "rule": self.rule,
            "alike": list(self.alike),
        }


def survey(path: Path, labels_from: LabelsFrom = "auto") -> Survey:
    """Survey a folder, an archive, idx files or an official .npz. Raises: ValueError for anything else; OSError."""
    if is_of_files(path):
        return _survey_files(path, labels_from)
    if path.is_dir():
        return _survey_idx(find_idx(path))
    if path.suffix == ".npz":
        return _survey_arrays(path, *read_npz(path))
    return _survey_idx(of_one_file(path))


def class_names(path: Path, labels_from: LabelsFrom = "auto") -> list[str]:
    """The classes of a set, without decoding a picture. Raises: the errors of `survey`."""
    if is_of_files(path):
        suffixes = Image.registered_extensions()
        entries = [each for each in find_entries(path)[0] if each.path.suffix.lower() in suffixes]
        return list(label_entries(path, entries, labels_from).classes)
    if path.suffix == ".npz":
        labels = read_labels(path)
        labels = np.zeros(1, np.int64) if labels is None else labels
    else:
        labels = read_labelled(find_idx(path) if path.is_dir() else of_one_file(path))[1]
    return [str(each) for each in np.unique(labels)]


def _survey_idx(paths: Sequence[Path]) -> Survey:
    images, labels = read_labelled(paths)
    return _survey_arrays(paths[0], images, labels)


def _survey_files(folder: Path, labels_from: LabelsFrom) -> Survey:
    entries, skipped = find_entries(folder)
    suffixes = Image.registered_extensions()
    sizes: dict[Path, str] = {}
    ignored = []
    for entry in entries:
        file = entry.path
        try:
            with entry.open() as content:
                picture = decode(content)
            sizes[file] = f"{picture.width}x{picture.height}"
        except PictureError as error:
            if file.suffix.lower() in suffixes:
                skipped.append(Skipped(file, str(error)))
            else:
                ignored.append(file)
        except OSError as error:
            skipped.append(Skipped(file, f"cannot be opened: {error.strerror}"))
    opened = {entry.path: entry for entry in entries if entry.path in sizes}
    labels = label_entries(folder, list(opened.values()), labels_from)
    skipped += labels.skipped
    if not labels.files:
        first = f"; {skipped[0].path.name} {skipped[0].reason}" if skipped else ""
        raise ValueError(
            f"{folder}: has no pictures "
            f"({counted(len(skipped), 'file')} skipped, {len(ignored)} ignored because they are not pictures{first})"
        )
    names = [labels.classes[each] for each in labels.labels]
    shown: dict[str, list[Image.Image]] = {name: [] for name in labels.classes}
    for file, name in zip(labels.files, names, strict=True):
        if len(shown[name]) < SHOWN_PER_CLASS:
            with opened[file].open() as content:
                shown[name].append(decode(content))
    counts = Counter(names)
    return Survey(
        len(names),
        {name: counts[name] for name in labels.classes},
        dict(Counter(sizes[file] for file in labels.files).most_common()),
        tuple(skipped),
        tuple(ignored),
        labels.rule,
        tuple(labels.alike),
        shown,
    )


def _survey_arrays(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer[Any]] | None) -> Survey:
    if images.size == 0:
        raise ValueError(f"{path}: has no images")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{path}: has {counted(len(images), 'image')} and {counted(labels.size, 'label')}")
    found = np.zeros(len(images), np.int64) if labels is None else labels
    classes, shown = {}, {}
    for label in np.unique(found):
        places = np.flatnonzero(found == label)
        classes[str(label)] = len(places)
        shown[str(label)] = [Image.fromarray(images[place]) for place in places[:SHOWN_PER_CLASS]]
    height, width = images.shape[1:3]
    rule = "no classes" if labels is None else "a class for each label in the file"
    return Survey(len(images), classes, {f"{width}x{height}": len(images)}, (), (), rule, (), shown)
