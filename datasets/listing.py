"""Lists the pictures of a folder and their classes, by a rule that is reported."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

LabelsFrom = Literal["auto", "folder", "name"]
# files of operating systems, beside those that begin with "."
SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})


class Skipped(NamedTuple):
    """A file or folder that is not read, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Labels:
    """The pictures that have a class, the label of each, and the class names in the order of their labels.

    rule: a sentence on how the classes were determined.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    rule: str
    skipped: tuple[Skipped, ...]

    @property
    def alike(self) -> list[str]:
        """Class names that differ from another one only in case, which usually are the same class."""
        seen = Counter(name.casefold() for name in self.classes)
        return [name for name in self.classes if seen[name.casefold()] > 1]


def find_files(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """All files below a folder except hidden ones, in sorted order of each folder's entries, subfolders in place.

    Links to a parent folder, broken links and subfolders that cannot be opened are skipped.
    Raises: OSError if the folder itself cannot be opened.
    """
    found: list[Path] = []
    skipped: list[Skipped] = []
    for each in _walk(folder, (folder.resolve(),)):
        if isinstance(each, Skipped):
            skipped.append(each)
        else:
            found.append(each)
    return found, skipped


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path | Skipped]:
    try:
        entries = sorted(folder.iterdir(), key=lambda each: each.name)
    except OSError as error:
        if len(above) == 1:  # the set itself
            raise
        yield Skipped(folder, f"cannot be opened: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_FILES:
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            yield Skipped(entry, f"cannot be opened: {error.strerror}")
            continue
        if is_folder:
            where = entry.resolve()
            if where in above:
                yield Skipped(entry, "is a link to a folder that it lies in")
            else:
                yield from _walk(entry, (*above, where))
        elif is_file:
            yield entry
        else:
            yield Skipped(entry, "is a broken link, or no file")


def label_pictures(folder: Path, files: Sequence[Path], labels_from: LabelsFrom = "auto") -> Labels:
    """The classes of pictures below a folder.

    "folder": the subfolder of a picture, below the first folder that has several. "name": the text before the first "_"
    of its name, as in guided-diffusion. "auto": "folder" if there are subfolders, and no picture outside them has a "_"
    in its name; else "name". With "name", there is one class if no name has a "_".
    """
    base = _branching(folder, files)
    beside = [file for file in files if file.parent == base]
    if labels_from == "auto":
        in_folders = len(beside) < len(files) and not any("_" in file.name for file in beside)
        labels_from = "folder" if in_folders else "name"
    if labels_from == "folder":
        names = {file: file.relative_to(base).parts[0] for file in files if file.parent != base}
        return labels_of(files, names, f"a class for each folder in {base}", "lies beside the folders of the classes")
    if not any("_" in file.name for file in files):
        return labels_of(files, dict.fromkeys(files, base.name), 'one class: no subfolder, and no name with a "_"', "")
    names = {file: file.name.partition("_")[0] for file in files if "_" in file.name}
    return labels_of(
        files, names, 'a class for each text before the first "_" of a name', 'has no "_" after a class in its name'
    )


def _branching(folder: Path, files: Sequence[Path]) -> Path:
    """The deepest folder that contains all files."""
    while files and len(firsts := {file.relative_to(folder).parts[0] for file in files}) == 1:
        (first,) = firsts
        if (folder / first) in files:
            break
        folder = folder / first
    return folder


def labels_of(files: Sequence[Path], names: Mapping[Path, str], rule: str, without: str) -> Labels:
    """Labels from the files' class names; files without one are skipped, with the reason `without`."""
    normal = {file: unicodedata.normalize("NFC", name) for file, name in names.items()}
    classes = tuple(sorted(set(normal.values())))
    number = {name: index for index, name in enumerate(classes)}
    kept = tuple(file for file in files if file in normal)
    skipped = tuple(Skipped(file, without) for file in files if file not in normal)
    return Labels(kept, tuple(number[normal[file]] for file in kept), classes, rule, skipped)
