"""Which class each image of a run is of: --classes."""

import codecs
import contextlib
import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulk.draws import draw
from bulk.errors import BulkError
from jobs.contract.pipelines import ClassInfo

NAMES_SHOWN = 20


@dataclass(frozen=True)
class Classes:
    """The class of image i of a run, for any i: it does not depend on how many images there are.

    spec is what the record of the run says of it. length: of a list in a file, which has no class for image `length`.
    """

    label: Callable[[int], int | None]
    spec: str
    length: int | None = None


def parse_classes(given: str, known: Sequence[ClassInfo], seed: int) -> Classes:
    """Read `uniform`, `balanced`, `none`, a list as `0,3,torus`, or the name of a file with a class on each line.

    uniform draws each image's class as the official scripts do, from (seed, i); balanced and a list take turns.
    Raises: BulkError, one line.
    """
    if given == "none":
        return Classes(lambda index: None, "none")
    if not known:
        raise BulkError(f"--classes {given}: this pipeline has no classes; use none")
    indices = [each.index for each in known]
    if given == "uniform":
        return Classes(lambda index: indices[draw("class", seed, index) % len(indices)], "uniform")
    if given == "balanced":
        return in_turn(indices, "balanced")
    names = {str(each.index): each.index for each in known} | {each.name: each.index for each in known}
    path = Path(given)
    with contextlib.suppress(OSError):  # a list may be too long for a file's name
        if path.is_file():
            return listed(path, names)
    labels = [_index(each.strip(), names, "--classes", or_file="," not in given) for each in given.split(",")]
    return in_turn(labels, ",".join(map(str, labels)))


def in_turn(labels: Sequence[int], spec: str) -> Classes:
    """Image i has the class at i modulo their number."""
    return Classes(lambda index: labels[index % len(labels)], spec)


def listed(path: Path, names: Mapping[str, int]) -> Classes:
    """Image i has the class of line i. Raises: BulkError, which names the line."""
    labels = array("l")
    digest = hashlib.sha256()
    try:
        with path.open(encoding=encoding_of(path)) as lines:
            for number, line in enumerate(lines, start=1):
                labels.append(_index(line.strip(), names, f"{path}, line {number}"))
                digest.update(b"%d\n" % labels[-1])
    except (OSError, UnicodeDecodeError) as error:
        raise BulkError(f"--classes {path}: cannot be read as text: {error}") from error
    if not labels:
        raise BulkError(f"--classes {path}: is empty")
    return Classes(labels.__getitem__, f"file of {len(labels)} lines, sha256 {digest.hexdigest()[:16]}", len(labels))


def encoding_of(path: Path) -> str:
    """The encoding that a text's byte order mark says; UTF-8 without one. Raises: OSError."""
    with path.open("rb") as file:
        head = file.read(2)
    return "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _index(given: str, names: Mapping[str, int], where: str, *, or_file: bool = False) -> int:
    if given in names:
        return names[given]
    what = f"unknown class {given!r}" if given else "there is no class"
    known = [name for name in names if not name.isdecimal()] or list(names)
    shown = f"{', '.join(known[:NAMES_SHOWN])}{' ...' if len(known) > NAMES_SHOWN else ''}"
    also = ", nor a file of that name" if or_file else ""
    raise BulkError(f"{where}: {what}{also}; there are {shown}, or their numbers")
