"""Addresses of a run's images: the class, chunk and row of image i, the same in this process and through the service.

Each class counts its own images: image i is the k-th of its class, counted along the run. It is then image k % 16 of
chunk k // 16 of that class, and a chunk is one job: one class, up to 16 images, the seed drawn from (the run's seed,
class, chunk). So the k-th image of a class is a function of (seed, class, k) alone, and does not depend on the number
of images, the other classes, the order of work or the devices. A chunk collects the images of one class, so jobs are
large even if each image's label is drawn by itself. The last chunk of a class may have fewer images, which are the same
as in a full one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bulk.classes import Classes
from bulk.hashed_random import draw
from jobs.contract.request import DRAWN_SEED_BELOW

IMAGES_PER_CHUNK = 16  # part of every image's address: another number gives other images


class Chunk(NamedTuple):
    """One job. Its image `row`, whose noise is drawn from (seed, row), is image indices[row] of the run."""

    class_label: int | None
    number: int
    seed: int
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return chunk_name(self.class_label, self.number)


class ImageAddress(NamedTuple):
    """An image's class, its chunk and its row there."""

    class_label: int | None
    chunk: str
    row: int


def chunk_name(class_label: int | None, number: int) -> str:
    return f"{'none' if class_label is None else class_label}-{number}"


@dataclass(frozen=True)
class ChunkPlan:
    """The images of a run. Its memory grows with the number of classes, not with that of images."""

    seed: int
    count: int
    classes: Classes

    def chunks(self) -> Iterator[Chunk]:
        """Yield a full chunk when its last image is counted, then the incomplete chunk of each class."""
        started: dict[int | None, list[int]] = {}
        numbers: dict[int | None, int] = {}
        for index in range(self.count):
            label = self.classes.label(index)
            indices = started.setdefault(label, [])
            indices.append(index)
            if len(indices) == IMAGES_PER_CHUNK:
                number = numbers.get(label, 0)
                yield self._chunk(label, number, started.pop(label))
                numbers[label] = number + 1
        for label, indices in started.items():
            yield self._chunk(label, numbers.get(label, 0), indices)

    def addresses(self) -> Iterator[ImageAddress]:
        """The address of each image, in the order of the run."""
        seen: dict[int | None, int] = {}
        for index in range(self.count):
            label = self.classes.label(index)
            rank = seen.get(label, 0)
            seen[label] = rank + 1
            yield ImageAddress(label, chunk_name(label, rank // IMAGES_PER_CHUNK), rank % IMAGES_PER_CHUNK)

    def _chunk(self, label: int | None, number: int, indices: list[int]) -> Chunk:
        # 53 bits, like the service's seeds, so that any JSON reader keeps them exact
        return Chunk(label, number, draw("noise", self.seed, label, number) % DRAWN_SEED_BELOW, tuple(indices))
