"""The idx files of the MNIST family (LeCun's format), plain or compressed by gzip."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

UINT8 = 8  # the only element type that these data sets use
GZIP = b"\x1f\x8b"


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an idx file of bytes. Raises: ValueError, which names the file, for anything else."""
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise ValueError(f"{path}: is not an idx file of bytes")
    dimensions, start = content[3], 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path}: is cut off in its head")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path}: holds {values.size} bytes where its head announces {'x'.join(map(str, shape))}")
    return values.reshape(shape)


def find_labels(images: Path) -> Path:
    """The file of labels that belongs to a file of images, by the family's names. Raises: ValueError."""
    for old, new in (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("images", "labels")):
        candidate = images.with_name(images.name.replace(old, new))
        if old in images.name and candidate.exists():
            return candidate
    raise ValueError(f"{images}: the file of labels beside it is missing")
