"""Reads pictures for measurement, unchanged, in batches: from a folder, an archive, idx files or an official .npz."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets.entries import Entry, find_entries, is_of_files
from datasets.idx import find_idx, of_one_file, read_idx
from datasets.listing import Skipped
from pictures.decoding import PictureError, decode
from vocabulary.counts import counted

BATCH = 100
IMAGES_MEMBER = "arr_0.npy"  # of an official .npz
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError)
"""Errors of a truncated or invalid .npz, beside ValueError; RuntimeError is zipfile's for an encrypted one."""


@dataclass(frozen=True)
class Pictures:
    """Batches [n, 3, H, W], uint8, all of one size, and the number of files, including those that are not images.

    skipped is filled while the batches are read. Reading raises ValueError, which names the file, for images of
    different sizes and for damaged files.
    """

    count: int
    batches: Iterator[Tensor]
    skipped: list[Skipped] = field(default_factory=list)


def open_pictures(path: Path, idx_size: int) -> Pictures:
    """Open a set of pictures.

    idx_size: size to which smaller images of idx files are padded with black, as training pads Fashion-MNIST's 28
    pixels to 32.
    Raises: ValueError, which names the file, for a path that is not a set of pictures or is damaged; OSError.
    """
    if is_of_files(path):
        return _entries(path)
    if path.is_dir():
        return _idx(find_idx(path), idx_size)
    if path.suffix == ".npz":
        return _npz(path)
    return _idx(of_one_file(path), idx_size)


def npz_members(path: Path) -> frozenset[str]:
    """The names of the arrays in an .npz. Raises: ValueError for a file that is damaged or not an .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: is no .npz file, or is damaged ({error})") from error


def _entries(path: Path) -> Pictures:
    entries, skipped = find_entries(path)
    return Pictures(len(entries), _decoded(path, entries, skipped), skipped)


def _decoded(path: Path, entries: Sequence[Entry], skipped: list[Skipped]) -> Iterator[Tensor]:
    usable = ((entry, image) for entry in entries if (image := _picture(entry, skipped)) is not None)
    size = None
    while batch := list(islice(usable, BATCH)):
        for entry, image in batch:
            if (size := size or image.size) != image.size:
                sizes = f"{image.width}x{image.height} where those before it are {size[0]}x{size[1]}"
                raise ValueError(f"{entry.path}: is {sizes}; the pictures of a set must be of one size")
        pixels = np.stack([np.array(image) for _, image in batch])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if size is None:
        first = f"; {skipped[0].path.name} {skipped[0].reason}" if skipped else ""
        raise ValueError(f"{path}: has no pictures ({counted(len(skipped), 'file')} skipped{first})")


def _picture(entry: Entry, skipped: list[Skipped]) -> Image.Image | None:
    """The picture, or None. Adds unreadable files to skipped, and undecodable ones that have a picture's suffix."""
    try:
        with entry.open() as file:
            return decode(file)
    except PictureError as error:
        if entry.path.suffix.lower() in Image.registered_extensions():
            skipped.append(Skipped(entry.path, str(error)))
    except OSError as error:
        skipped.append(Skipped(entry.path, f"cannot be opened: {error.strerror}"))
    return None


def _idx(paths: Sequence[Path], size: int) -> Pictures:
    files = [read_idx(path) for path in paths]
    for path, images in zip(paths, files, strict=True):
        if images.ndim != 3 or images.shape[1:] != files[0].shape[1:]:
            raise ValueError(f"{path}: has bytes of shape {images.shape}; images [N, H, W] of one size are needed")
    grey = torch.cat([torch.from_numpy(images.copy()) for images in files])
    margin = max(0, size - max(grey.shape[1:])) // 2
    padded = (F.pad(part, (margin,) * 4) for part in grey.split(BATCH))
    return Pictures(len(grey), (part[:, None].expand(-1, 3, -1, -1) for part in padded))


def _npz(path: Path) -> Pictures:
    return Pictures(_count(path), _stored(path))


def _count(path: Path) -> int:
    """The number of images of an official .npz, by their header alone."""
    _refuse_without_images(path)
    with _opened_images(path) as file:
        return _image_header(path, file)[0][0]


def _refuse_without_images(path: Path) -> None:
    """Refuse other files, which numpy may read as other arrays. Raises: ValueError, which names the file."""
    if IMAGES_MEMBER not in npz_members(path):
        raise ValueError(f"{path}: has no arr_0, the images of an official .npz")


@contextlib.contextmanager
def _opened_images(path: Path) -> Iterator[IO[bytes]]:
    """The images of an official .npz as a file. Raises: ValueError, which names the file, for damage."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(IMAGES_MEMBER) as file:
            yield file
    except DAMAGE as error:
        raise ValueError(f"{path}: arr_0 is damaged ({error})") from error


def _image_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool]:
    """An array's shape, and whether it is in Fortran order; the file position is then the first pixel."""
    try:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: arr_0 is damaged ({error})") from error
    refuse_other_images(path, dtype, shape)
    return shape, fortran_order


def refuse_other_images(path: Path, dtype: "np.dtype[Any]", shape: Sequence[int]) -> None:
    """Refuse an arr_0 that is not the images of an official .npz. Raises: ValueError, which names the file."""
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise ValueError(f"{path}: arr_0 is {dtype} {tuple(shape)}; uint8 [N, H, W, 3] is needed")


def read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]] | None]:
    """The images [N, H, W, 3] of an official .npz, and its labels [N], or None.

    Raises: ValueError, which names the file, for a file that is damaged or not an official .npz.
    """
    _refuse_without_images(path)
    images = _array(path, "arr_0")
    assert images is not None
    refuse_other_images(path, images.dtype, images.shape)
    return images, _labels(path, len(images))


def read_labels(path: Path) -> NDArray[np.integer[Any]] | None:
    """The labels [N] of an official .npz, or None, without reading its images. Raises: the errors of `read_npz`."""
    return _labels(path, _count(path))


def _labels(path: Path, count: int) -> NDArray[np.integer[Any]] | None:
    labels = _array(path, "arr_1")
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu" or (labels < 0).any()):
        raise ValueError(
            f"{path}: arr_1 must have an integer label, 0 or more, for each of the {counted(count, 'image')}"
        )
    return labels


def _array(path: Path, name: str) -> NDArray[Any] | None:
    """An array of an .npz, or None if it has no such array. Raises: ValueError, which names the file, for damage."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array: NDArray[Any] | None = arrays.get(name)
            return array
    except (ValueError, *DAMAGE) as error:
        raise ValueError(f"{path}: is damaged ({error})") from error


def _stored(path: Path) -> Iterator[Tensor]:
    with _opened_images(path) as file:
        (count, height, width, channels), in_fortran_order = _image_header(path, file)
        if in_fortran_order:
            raise ValueError(f"{path}: arr_0 is in Fortran order; store numpy.ascontiguousarray(arr_0)")
        length = height * width * channels
        for start in range(0, count, BATCH):
            wanted = min(BATCH, count - start) * length
            content = file.read(wanted)
            if len(content) != wanted:
                raise ValueError(f"{path}: arr_0 is cut off: its header states {counted(count, 'image')}")
            pixels = np.frombuffer(bytearray(content), np.uint8).reshape(-1, height, width, channels)
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2)
