"""Base samples for an upsampler: the official .npz, read one image at a time, without numpy."""

import ast
import hashlib
import struct
import zipfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bulk.chunks import Chunk
from bulk.errors import BulkError
from vocabulary.counts import counted

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member; the lengths of its name and of its extra field
CHANNELS = 3
# errors of malformed files
DAMAGE = (ValueError, TypeError, SyntaxError, NotImplementedError, OverflowError, MemoryError, struct.error)
# numpy's names of integers, and array's
LABELS = {"|u1": "B", "<i2": "h", "<i4": "i", "<u4": "I", "<i8": "q", "<u8": "Q"}


@dataclass(frozen=True)
class BaseSamples:
    """arr_0 of an .npz, uint8 [count, size, size, 3], and arr_1, its class labels; empty if there is no arr_1."""

    path: Path
    count: int
    size: int
    labels: Sequence[int] | None
    sha256: str
    offset: int

    def pictures(self, chunk: Chunk) -> dict[str, bytes]:
        """Pixels of the images that a chunk starts from, by their names in its request."""
        length = self.size * self.size * CHANNELS
        found = {}
        with self.path.open("rb") as file:
            for index in chunk.indices:
                file.seek(self.offset + index * length)
                found[name_of(index)] = file.read(length)
        return found


def name_of(index: int) -> str:
    """The name of a base sample in a request for this machine's devices; for a service it is a file's id."""
    return f"base-{index}"


def read_base_samples(path: Path) -> BaseSamples:
    """Read the headers of an .npz in the form of guided-diffusion's scripts. Raises: BulkError, one line."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            (descr, shape), offset = _head(archive, file, "arr_0")
            if descr != "|u1" or len(shape) != 4 or shape[1] != shape[2] or shape[3] != CHANNELS:
                raise BulkError(f"--base-samples {path}: arr_0 is {descr} {shape}; uint8 [N, H, H, 3] is needed")
            labels = _labels(archive, file, path) if "arr_1.npy" in archive.namelist() else None
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except KeyError as error:
        raise BulkError(f"--base-samples {path}: has no {error}; numpy.savez names its first array arr_0") from error
    except OSError as error:
        raise BulkError(f"--base-samples {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, *DAMAGE) as error:
        raise BulkError(f"--base-samples {path}: is not a complete .npz of numpy.savez ({error})") from error
    count, size = shape[:2]
    if labels is not None and len(labels) != count:
        raise BulkError(f"--base-samples {path}: has {counted(count, 'image')} and {counted(len(labels), 'label')}")
    return BaseSamples(path, count, size, labels, sha256, offset)


def _labels(archive: zipfile.ZipFile, file: IO[bytes], path: Path) -> "array[int]":
    (descr, shape), offset = _head(archive, file, "arr_1")
    if descr not in LABELS or len(shape) != 1:
        raise BulkError(f"--base-samples {path}: arr_1 is {descr} {shape}; integers [N] are needed")
    labels = array(LABELS[descr])
    file.seek(offset)
    labels.frombytes(file.read(shape[0] * labels.itemsize))
    return labels


def _head(archive: zipfile.ZipFile, file: IO[bytes], name: str) -> tuple[tuple[str, tuple[int, ...]], int]:
    """An array's type and shape, and the offset of its data in the file. Raises: KeyError, ValueError."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed; write it by numpy.savez")
    file.seek(member.header_offset)
    file.seek(member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))))
    magic = file.read(8)
    if not magic.startswith(b"\x93NUMPY"):
        raise ValueError(f"{name} is no array")
    (length,) = struct.unpack("<H", file.read(2)) if magic[6] == 1 else struct.unpack("<I", file.read(4))
    head: Mapping[str, Any] = ast.literal_eval(file.read(length).decode("latin1"))
    if head["fortran_order"]:
        raise ValueError(f"{name} is in Fortran order")
    return (head["descr"], head["shape"]), file.tell()
