"""The .npz against NumPy, which reads it, and against the layout of the official scripts."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bulk.npz import write_npz

SIZE = 4


def pictures(count: int) -> Iterator[bytes]:
    return (bytes([index % 256]) * (SIZE * SIZE * 3) for index in range(count))


@pytest.mark.parametrize("count", [1, 16, 300])
def test_numpy_reads_images_and_labels_as_from_the_official_scripts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "samples.npz"
    write_npz(path, (count, SIZE, SIZE, 3), pictures(count), iter(range(count)))
    with np.load(path) as archive:
        assert archive.files == ["arr_0", "arr_1"]
        images, labels = archive["arr_0"], archive["arr_1"]
    assert (images.dtype, images.shape, images.flags["C_CONTIGUOUS"]) == (np.uint8, (count, SIZE, SIZE, 3), True)
    assert (labels.dtype, labels.shape) == (np.int64, (count,))
    assert images[:, 1, 2, 0].tolist() == [index % 256 for index in range(count)]
    assert labels.tolist() == list(range(count))


def test_bytes_are_those_of_numpy_itself(tmp_path: Path) -> None:
    write_npz(tmp_path / "ours.npz", (5, SIZE, SIZE, 3), pictures(5), iter(range(5)))
    images = np.frombuffer(b"".join(pictures(5)), np.uint8).reshape(5, SIZE, SIZE, 3)
    np.savez(tmp_path / "theirs.npz", images, np.arange(5, dtype=np.int64))
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "theirs.npz").read_bytes()


def test_without_classes_there_is_no_second_array(tmp_path: Path) -> None:
    write_npz(tmp_path / "samples.npz", (3, SIZE, SIZE, 3), pictures(3), None)
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive.files == ["arr_0"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_npz(tmp_path / "samples.npz", (count, SIZE, SIZE, 3), pictures(count), iter(range(count)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is imported at first use
    assert peak(5000) < peak(50) + 20_000  # the images alone are 240,000 bytes
