"""Where finished images go: an .npz by way of parts on disk, or a folder of PNGs.

Both keep a chunk in whole files, so that a chunk is there or is not, at whatever instant the run is killed.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from bulk.base_samples import read_base_samples
from bulk.disk import UNFINISHED, remove_unfinished, settle, whole_file, write_whole
from bulk.errors import BulkError
from bulk.npz import write_npz
from bulk.plan import IMAGES_PER_CHUNK, Chunk, Plan

CHANNELS = 3
DIGITS = 6  # of an index in a file's name, at least


class Output(ABC):
    """The images of one run. An image is the bytes of its pixels, [H, W, 3], uint8."""

    record: Path
    """What the run is; written before anything else, and kept beside the result."""
    folder: Path
    """Where the run works."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do, as far as one look tells."""

    @property
    @abstractmethod
    def occupied(self) -> bool:
        """Whether something lies there that is no run's."""

    @abstractmethod
    def has(self, chunk: Chunk) -> bool:
        """Whether a chunk is kept."""

    @abstractmethod
    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        """Keep a chunk durably."""

    def note_job(self, chunk: Chunk, job_id: str) -> None:  # noqa: B027 # files of images do not name jobs
        """Note the service's job that made a chunk, before the chunk is kept."""

    @abstractmethod
    def grow(self, before: Plan, size: int) -> None:
        """Let a run of more images go on from a plan of fewer, finished or not; it may be called again after a kill."""

    @abstractmethod
    def finish(self, plan: Plan, size: int, on_image: Callable[[], None]) -> None:
        """Make the result of what was kept; it may be called again after it was killed."""


class NpzOutput(Output):
    """samples.npz, made of samples.npz.parts; the official layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path.with_name(f"{path.name}.json")
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

    def grow(self, before: Plan, size: int) -> None:
        """Take the file apart again; a chunk that was cut short by the end of the run is made anew."""
        made = read_base_samples(self.path) if self.finished else None
        for chunk in before.chunks():
            if len(chunk.indices) < IMAGES_PER_CHUNK:
                self._part(chunk.name).unlink(missing_ok=True)
            elif made is not None and not self.has(chunk):
                self.keep(chunk, list(made.pictures(chunk).values()), size)
        self.path.unlink(missing_ok=True)
        settle(self.path.parent)

    def finish(self, plan: Plan, size: int, on_image: Callable[[], None]) -> None:
        if not self.finished:
            remove_unfinished(self.path)  # as large as the whole of it
            labelled = plan.count > 0 and plan.classes.label(0) is not None
            labels = (place.class_label for place in plan.places() if place.class_label is not None)
            with whole_file(self.path) as unfinished:
                shape = (plan.count, size, size, CHANNELS)
                write_npz(unfinished, shape, self._images(plan, size), labels if labelled else None, on_image)
            settle(self.path.parent)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.rgb"

    def _images(self, plan: Plan, size: int) -> Iterator[bytes]:
        # Opened for each image: neighbours in the run are of different classes, so of different parts.
        length = size * size * CHANNELS
        for place in plan.places():
            with self._part(place.chunk).open("rb") as part:
                part.seek(place.row * length)
                image = part.read(length)
            if len(image) != length:
                raise BulkError(f"{part.name}: is damaged; remove it, and run the same command again")
            yield image


class FolderOutput(Output):
    """A folder with a PNG an image, CLASS_INDEX.png: the name as training scripts read it, the official ones and ours.

    Without a class INDEX.png.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        self.record = path / "run.json"

    @property
    def finished(self) -> bool:
        return False  # each file has to be looked for

    @property
    def occupied(self) -> bool:
        return self.folder.exists() and any(each.suffix != UNFINISHED for each in self.folder.iterdir())

    def has(self, chunk: Chunk) -> bool:
        return all(self._path(chunk, index).exists() for index in chunk.indices)

    def keep(self, chunk: Chunk, images: Sequence[bytes], size: int) -> None:
        for index, pixels in zip(chunk.indices, images, strict=True):
            with whole_file(self._path(chunk, index)) as unfinished:
                Image.frombytes("RGB", (size, size), pixels).save(unfinished, "PNG")
        settle(self.folder)

    def grow(self, before: Plan, size: int) -> None:
        """Nothing: each file is an image."""

    def finish(self, plan: Plan, size: int, on_image: Callable[[], None]) -> None:
        """Nothing: the files are the result."""

    def _path(self, chunk: Chunk, index: int) -> Path:
        prefix = "" if chunk.class_label is None else f"{chunk.class_label:04d}_"
        return self.folder / f"{prefix}{index:0{DIGITS}d}.png"


def open_output(path: Path) -> Output:
    """The form that a path's name asks for: .npz, or else a folder. Raises: BulkError."""
    if path.suffix == ".npz":
        if path.is_dir():
            raise BulkError(f"--out {path}: is a folder")
        return NpzOutput(path)
    if path.exists() and not path.is_dir():
        raise BulkError(f"--out {path}: must end in .npz or be a folder, and this is a file")
    if path.suffix and not path.is_dir():  # samples.png is hardly meant as a folder; one that is there already is
        raise BulkError(f"--out {path}: ends in {path.suffix}; give a name in .npz, or a folder's without a suffix")
    return FolderOutput(path)
