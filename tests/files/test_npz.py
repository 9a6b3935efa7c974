"""Arrays of an .npz are found where numpy wrote them, and other files are refused."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from files.npz import stored_array


@pytest.mark.parametrize("array", [np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.arange(3), np.zeros((0, 2))])
def test_array_is_where_numpy_wrote_it(tmp_path: Path, array: Any) -> None:
    np.savez(tmp_path / "set.npz", other=np.ones(5), wanted=array)
    found = stored_array(tmp_path / "set.npz", "wanted")
    content = (tmp_path / "set.npz").read_bytes()[found.offset : found.offset + array.nbytes]
    assert (np.dtype(found.descr), found.shape, content) == (array.dtype, array.shape, array.tobytes())


def test_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", other=np.ones(5))
    with pytest.raises(KeyError, match="wanted"):
        stored_array(tmp_path / "set.npz", "wanted")


def test_compressed_array_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", wanted=np.ones(5))
    with pytest.raises(ValueError, match="wanted is compressed"):
        stored_array(tmp_path / "set.npz", "wanted")


def test_array_in_fortran_order_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", wanted=np.asfortranarray(np.ones((2, 3))))
    with pytest.raises(ValueError, match="wanted is in Fortran order"):
        stored_array(tmp_path / "set.npz", "wanted")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no array"),
        (b"text, no array", "is no array"),
        (b"\x93NUMPY\x01\x00", "header of wanted is damaged"),
        (b"\x93NUMPY\x09\x00\x02\x00{}", "header of wanted is damaged"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "header of wanted is damaged"),
    ],
)
def test_damaged_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("wanted.npy", content)
    with pytest.raises(ValueError, match=message):
        stored_array(tmp_path / "set.npz", "wanted")
