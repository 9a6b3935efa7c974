"""The class of each image of a run: --classes."""

import codecs
import contextlib
import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulk.errors import OptionError
from bulk.hashed_random import draw
from jobs.contract.pipelines import ClassInfo
from vocabulary.classes import ClassNames, UnknownClassError


@dataclass(frozen=True)
class Classes:
    """The class of image i of a run, for any i, independent of the number of images.

    spec: its description in the run's file. length: number of images of a list in a file; None without a limit.
    """

    label: Callable[[int], int | None]
    spec: str
    length: int | None = None


def parse_classes(given: str, known: Sequence[ClassInfo], seed: int) -> Classes:
    """Parse `uniform`, `balanced`, `none`, a list such as `0,3,torus`, or the name of a file with a class on each line.

    uniform draws each image's class from (seed, i), with the official scripts' distribution; balanced and a list assign
    their classes in turn.
    Raises: BulkError, one line.
    """
    if given == "none":
        return Classes(lambda index: None, "none")
    if not known:
        raise OptionError(("--classes", f"{given!r} was given, and this pipeline has no classes; use none"))
    indices = [each.index for each in known]
    if given == "uniform":
        return Classes(lambda index: indices[draw("class", seed, index) % len(indices)], "uniform")
    if given == "balanced":
        return in_turn(indices, "balanced")
    names = ClassNames({each.index: each.name for each in known})
    path = Path(given)
    with contextlib.suppress(OSError):  # a list may be too long for a file's name
        if path.is_file():
            return listed(path, names)
    labels = [_index(each.strip(), names, or_file="," not in given) for each in given.split(",")]
    return in_turn(labels, ",".join(map(str, labels)))


def in_turn(labels: Sequence[int], spec: str) -> Classes:
    """Classes in turn: image i has the label at position i modulo the number of labels."""
    return Classes(lambda index: labels[index % len(labels)], spec)


def listed(path: Path, names: ClassNames) -> Classes:
    """Classes from a file: image i has the class of line i. Raises: BulkError, which names the line."""
    labels = array("l")
    digest = hashlib.sha256()
    try:
        with path.open(encoding=encoding_of(path)) as lines:
            for number, line in enumerate(lines, start=1):
                labels.append(_index(line.strip(), names, f"{path}, line {number}: "))
                digest.update(b"%d\n" % labels[-1])
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(("--classes", f"{path} cannot be read as text: {error}")) from error
    if not labels:
        raise OptionError(("--classes", f"{path} is empty; it needs a class on each line"))
    return Classes(labels.__getitem__, f"file of {len(labels)} lines, sha256 {digest.hexdigest()[:16]}", len(labels))


def encoding_of(path: Path) -> str:
    """The encoding of a text by its byte order mark; UTF-8 without one. Raises: OSError."""
    with path.open("rb") as file:
        head = file.read(2)
    return "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _index(given: str, names: ClassNames, where: str = "", *, or_file: bool = False) -> int:
    if not given:
        raise OptionError(("--classes", f"{where}a class is missing; name one, or leave its comma or line out"))
    try:
        return names.parse(given)
    except UnknownClassError as error:
        unknown = f"there is neither a class nor a file {given!r}" if or_file else f"unknown class {given!r}"
        raise OptionError(("--classes", f"{where}{unknown}{error.instead}")) from error
