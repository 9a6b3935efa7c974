"""The idx files of the MNIST family (LeCun's format), plain or compressed by gzip."""

import gzip
import struct
import zlib
from collections.abc import Sequence
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
        raise ValueError(f"{path}: ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path}: has {values.size} bytes of data, but its header says {'x'.join(map(str, shape))}")
    return values.reshape(shape)


def of_one_file(path: Path) -> list[Path]:
    """The file as the only one of a set of images. Raises: ValueError, which names what a set may be; OSError."""
    with path.open("rb") as file:
        start = file.read(4)
    if (start[:2] != GZIP and start[:3] != bytes((0, 0, UINT8))) or ".tar" in path.suffixes or path.suffix == ".tgz":
        raise ValueError(
            f"{path}: is no set of pictures; a set is a folder, a .zip file, an uncompressed .tar file, an idx file "
            "of bytes, or an official .npz"
        )
    return [path]


def find_labels(images: Path) -> Path:
    """The file of labels of a file of images, by the family's naming. Raises: ValueError."""
    for old, new in (("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("images", "labels")):
        candidate = images.with_name(images.name.replace(old, new))
        if old in images.name and candidate.exists():
            return candidate
    raise ValueError(f"{images}: the file of labels beside it is missing")


def find_idx(folder: Path) -> list[Path]:
    """The files of images of the MNIST family in a folder, by their names, in sorted order."""
    names = (each for each in folder.iterdir() if each.suffix != ".json")  # records of downloads
    return sorted(each for each in names if "images-idx3" in each.name or "images.idx3" in each.name)


def read_labelled(paths: Sequence[Path]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The concatenated images [N, H, W] and labels [N] of files. Raises: ValueError, which names a file."""
    images: list[npt.NDArray[np.uint8]] = []
    labels: list[npt.NDArray[np.uint8]] = []
    for path in paths:
        some, of_them = read_idx(path), read_idx(find_labels(path))
        if some.ndim != 3 or of_them.shape != (len(some),):
            raise ValueError(f"{path}: has images of shape {some.shape} and labels of shape {of_them.shape}")
        if images and some.shape[1:] != images[0].shape[1:]:
            raise ValueError(f"{path}: its images have another size than those of {paths[0]}")
        images.append(some)
        labels.append(of_them)
    return np.concatenate(images), np.concatenate(labels)
