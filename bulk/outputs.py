"""Outputs of finished images: an .npz with parts on disk, or a folder of PNGs.

Both store a chunk in atomic files, so that a chunk is stored or not, whenever the run is killed.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from bulk.base_samples import read_base_samples
from bulk.chunks import IMAGES_PER_CHUNK, Chunk, ChunkPlan
from bulk.disk import remove_unfinished, settle, write_whole
from bulk.errors import BulkError
from bulk.npz import write_npz
from files.atomic import UNFINISHED, atomic_write

CHANNELS = 3
DIGITS = 6  # of an index in a file's name; larger indices have more


class Output(ABC):
    """The images of one run. An image is the bytes of its pixels, [H, W, 3], uint8."""

    run_file: Path
    """The file with the run's parameters; written first, and kept beside the result."""
    folder: Path
    """The folder in which the run works."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Return whether the result exists, as far as one check can show it."""

    @property
    @abstractmethod
    def occupied(self) -> bool:
        """Return whether there are files; without a run file, they are not a run's."""

    @abstractmethod
    def has(self, chunk: Chunk) -> bool:
        """Return whether a chunk is stored."""

    @abstractmethod
    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        """Store a chunk durably."""

    def note_job(self, chunk: Chunk, job_id: str) -> None:  # noqa: B027 # files of images do not name jobs
        """Note the service's job that made a chunk, before the chunk is stored."""

    @abstractmethod
    def grow(self, before: ChunkPlan, size: int) -> None:
        """Convert the output of a shorter plan, finished or not, for a longer run; may be called again after a kill."""

    @abstractmethod
    def finish(self, plan: ChunkPlan, size: int, on_image: Callable[[], None]) -> None:
        """Make the result from the stored chunks; may be called again after a kill."""


class NpzOutput(Output):
    """samples.npz, made of samples.npz.parts; the official layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path.with_name(f"{path.name}.json")
        self.folder = path.with_name(f"{path.name}.parts")

    @property
    def finished(self) -> bool:
        return self.path.exists()

    @property
    def occupied(self) -> bool:
        return self.path.exists() or self.folder.exists()

    def has(self, chunk: Chunk) -> bool:
        return self._part(chunk.name).exists()

    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        write_whole(self._part(chunk.name), images)

    def grow(self, before: ChunkPlan, size: int) -> None:
        """Split the file into parts again; an incomplete last chunk of a class is made again."""
        made = read_base_samples(self.path) if self.finished else None
        for chunk in before.chunks():
            if len(chunk.indices) < IMAGES_PER_CHUNK:
                self._part(chunk.name).unlink(missing_ok=True)
            elif made is not None and not self.has(chunk):
                self.keep(chunk, list(made.pictures(chunk).values()), size)
        self.path.unlink(missing_ok=True)
        settle(self.path.parent)

    def finish(self, plan: ChunkPlan, size: int, on_image: Callable[[], None]) -> None:
        if not self.finished:
            remove_unfinished(self.path)  # unfinished files are as large as the result
            labelled = plan.count > 0 and plan.classes.label(0) is not None
            labels = (each.class_label for each in plan.addresses() if each.class_label is not None)
            with atomic_write(self.path, durable=True, many_writers=True) as file:
                shape = (plan.count, size, size, CHANNELS)
                write_npz(file, shape, self._images(plan, size), labels if labelled else None, on_image)
            settle(self.path.parent)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.rgb"

    def _images(self, plan: ChunkPlan, size: int) -> Iterator[bytes]:
        # Opened for each image, because neighbours in the run are of different classes and parts.
        length = size * size * CHANNELS
        for address in plan.addresses():
            with self._part(address.chunk).open("rb") as part:
                part.seek(address.row * length)
                image = part.read(length)
            if len(image) != length:
                raise BulkError(f"{part.name}: is damaged; remove it, and run the same command again")
            yield image


class FolderOutput(Output):
    """A folder with one PNG per image, CLASS_INDEX.png, a form that the official training scripts and ours can read.

    Without a class, the name is INDEX.png.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        self.run_file = path / "run.json"

    @property
    def finished(self) -> bool:
        return False  # every file must be checked

    @property
    def occupied(self) -> bool:
        return self.folder.exists() and any(each.suffix != UNFINISHED for each in self.folder.iterdir())

    def has(self, chunk: Chunk) -> bool:
        return all(self._path(chunk, index).exists() for index in chunk.indices)

    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        for index, pixels in zip(chunk.indices, images, strict=True):
            with atomic_write(self._path(chunk, index), durable=True, many_writers=True) as file:
                Image.frombytes("RGB", (size, size), pixels).save(file, "PNG")
        settle(self.folder)

    def grow(self, before: ChunkPlan, size: int) -> None:
        """Do nothing, because each file is one image."""

    def finish(self, plan: ChunkPlan, size: int, on_image: Callable[[], None]) -> None:
        """Do nothing, because the files are the result."""

    def _path(self, chunk: Chunk, index: int) -> Path:
        prefix = "" if chunk.class_label is None else f"{chunk.class_label:04d}_"
        return self.folder / f"{prefix}{index:0{DIGITS}d}.png"


def open_output(path: Path) -> Output:
    """The output for a path: .npz by its suffix, or else a folder. Raises: BulkError."""
    if path.suffix == ".npz":
        if path.is_dir():
            raise BulkError(f"--out {path}: is a folder")
        return NpzOutput(path)
    if path.exists() and not path.is_dir():
        raise BulkError(f"--out {path}: must end in .npz or be a folder, and this is a file")
    if path.suffix and not path.is_dir():  # samples.png is probably not meant as a folder, unless it exists as one
        raise BulkError(
            f"--out {path}: ends in {path.suffix}; give a file's name that ends in .npz, or a folder's name"
        )
    return FolderOutput(path)
