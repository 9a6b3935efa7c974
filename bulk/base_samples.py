"""Base samples for an upsampler: the official .npz, read one image at a time, without numpy."""

import hashlib
import zipfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bulk.chunks import Chunk
from bulk.errors import BulkError
from files.npz import stored_array
from vocabulary.counts import counted

CHANNELS = 3
# errors of malformed files
DAMAGE = (ValueError, TypeError, NotImplementedError, OverflowError, MemoryError)
# numpy's names of integers, and array's
LABELS = {"|u1": "B", "<i2": "h", "<i4": "i", "<u4": "I", "<i8": "q", "<u8": "Q"}


@dataclass(frozen=True)
class BaseSamples:
    """arr_0 of an .npz, uint8 [count, size, size, 3], and arr_1, its class labels; None if there is no arr_1."""

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
        images = stored_array(path, "arr_0")
        descr, shape = images.descr, images.shape
        if descr != "|u1" or len(shape) != 4 or shape[1] != shape[2] or shape[3] != CHANNELS:
            raise BulkError(f"--base-samples {path}: arr_0 is {descr} {shape}; uint8 [N, H, H, 3] is needed")
        labels = _labels(path)
        with path.open("rb") as file:
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
    return BaseSamples(path, count, size, labels, sha256, images.offset)


def _labels(path: Path) -> "array[int] | None":
    try:
        stored = stored_array(path, "arr_1")
    except KeyError:
        return None
    if stored.descr not in LABELS or len(stored.shape) != 1:
        raise BulkError(f"--base-samples {path}: arr_1 is {stored.descr} {stored.shape}; integers [N] are needed")
    labels = array(LABELS[stored.descr])
    with path.open("rb") as file:
        file.seek(stored.offset)
        labels.frombytes(file.read(stored.shape[0] * labels.itemsize))
    return labels
