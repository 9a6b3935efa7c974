"""Lists the files of a set of pictures in a folder, a zip file or webdataset's tar files."""

import errno
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from datasets.idx import find_idx
from datasets.listing import SYSTEM_FILES, Skipped, find_files

ARCHIVES = frozenset({".zip", ".tar"})
CLASS_FILE = ".cls"  # of a shard: KEY.cls has the class of the picture KEY.jpg
COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz, zstandard


@dataclass(frozen=True)
class Entry:
    """A file of a set. path: its name, below that of its archive; class_name: from a shard, else None.

    `open` raises OSError, also for a file that is damaged in its archive, encrypted, or packed by an unknown method.
    """

    path: Path
    open: Callable[[], IO[bytes]]
    class_name: str | None = None


def is_of_files(path: Path) -> bool:
    """Return whether a set has a file for each picture, in a folder or an archive."""
    if path.is_dir():
        return not find_idx(path)
    return path.suffix.lower() in ARCHIVES or not path.exists()  # a pattern of shards does not exist as a file


def find_entries(path: Path) -> tuple[list[Entry], list[Skipped]]:
    """The files of a folder, of an archive, or of all tar files of a folder, without hidden ones.

    Raises: ValueError if the path is none of these, or is damaged.
    """
    if path.is_dir():
        files, skipped = find_files(path)
        if files and all(file.suffix == ".tar" for file in files):
            return [entry for file in files for entry in _archive(file)], skipped
        return [Entry(file, partial(_open_file, file)) for file in files], skipped
    if path.suffix.lower() in ARCHIVES and path.is_file():
        return list(_archive(path)), []
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    raise ValueError(f"{path}: is no folder and no {' or '.join(sorted(ARCHIVES))} file")


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _archive(path: Path) -> Iterator[Entry]:
    try:
        yield from _zip(path) if path.suffix.lower() == ".zip" else _tar(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: the archive is damaged or cut off ({error})") from error


def _zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(each.filename for each in archive.infolist() if not each.is_dir())
    for name in filter(_is_shown, names):
        yield Entry(_below(path, name), partial(_read_zip, path, name))


def _read_zip(path: Path, name: str) -> IO[bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(name))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise OSError(errno.EIO, f"damaged in the archive ({error})") from error
    except RuntimeError as error:  # encrypted, or, as NotImplementedError, of an unknown compression
        raise OSError(errno.EIO, str(error)) from error


def _tar(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        if file.read(8).startswith(COMPRESSIONS):
            raise ValueError(f"{path}: is compressed, so its pictures cannot be read in any order; decompress it first")
    with tarfile.open(path, "r:") as archive:
        members = {
            each.name: (each.offset_data, each.size) for each in archive if each.isreg() and _is_shown(each.name)
        }
    classes = {
        name.removesuffix(CLASS_FILE): _read_part(path, *members[name]).read().decode(errors="replace").strip()
        for name in members
        if name.endswith(CLASS_FILE)
    }
    for name, (offset, size) in members.items():
        if not name.endswith(CLASS_FILE):
            key = str(PurePosixPath(name).with_suffix(""))
            yield Entry(_below(path, name), partial(_read_part, path, offset, size), classes.get(key))


def _read_part(path: Path, offset: int, size: int) -> IO[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def _below(archive: Path, name: str) -> Path:
    """The path of a file below its archive, also if its name in the archive is absolute."""
    return archive / name.lstrip("/")


def _is_shown(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not any(part.startswith(".") or part in SYSTEM_FILES for part in parts)
