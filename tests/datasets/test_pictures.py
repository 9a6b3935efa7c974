"""Sets of pictures to be measured: each form of storage gives the same pixels, and an invalid set gives one line."""

import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets.pictures import BATCH, open_pictures
from datasets.survey import survey

PIXELS = np.random.default_rng(0).integers(0, 256, (BATCH + 5, 6, 6, 3), np.uint8)


def read(path: Path, idx_size: int = 0) -> Tensor:
    return torch.cat(list(open_pictures(path, idx_size).batches))


def as_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def write_folder(folder: Path) -> None:
    folder.mkdir()
    for index, each in enumerate(PIXELS):
        Image.fromarray(each).save(folder / f"{index:04d}.png")


def idx(images: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([images.ndim]) + struct.pack(f">{images.ndim}I", *images.shape) + images.tobytes()


def test_a_folder_a_zip_and_an_npz_contain_the_same_pictures(tmp_path: Path) -> None:
    folder, archive, npz = tmp_path / "folder", tmp_path / "set.zip", tmp_path / "set.npz"
    write_folder(folder)
    with zipfile.ZipFile(archive, "w") as file:
        for each in folder.iterdir():
            file.write(each, each.name)
    np.savez(npz, PIXELS)
    for path in (folder, archive, npz):
        assert torch.equal(read(path), as_tensor(PIXELS))
        assert open_pictures(path, 0).count == len(PIXELS)


def test_a_compressed_npz_is_read_in_batches_as_well(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", PIXELS, np.zeros(len(PIXELS)))
    batches = list(open_pictures(tmp_path / "set.npz", 0).batches)
    assert [len(each) for each in batches] == [BATCH, 5]
    assert torch.equal(torch.cat(batches), as_tensor(PIXELS))


@pytest.mark.parametrize(("idx_size", "margin"), [(0, 0), (6, 0), (8, 1), (10, 2)])
def test_idx_files_are_grey_and_get_black_around_them(tmp_path: Path, idx_size: int, margin: int) -> None:
    grey = PIXELS[..., 0]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(grey))
    images = read(tmp_path, idx_size)
    size = 6 + 2 * margin
    assert images.shape == (len(grey), 3, size, size)
    inner = images[:, 1, margin : size - margin, margin : size - margin]
    assert torch.equal(inner, torch.from_numpy(grey))
    assert int(images.sum()) == 3 * int(grey.sum(dtype=np.int64))


def test_files_that_claim_to_be_pictures_are_counted_and_others_are_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "set" / "run.json").write_text("{}")
    pictures = open_pictures(tmp_path / "set", 0)
    assert sum(map(len, pictures.batches)) == len(PIXELS)
    assert [each.path.name for each in pictures.skipped] == ["broken.png"]


def test_pictures_of_two_sizes_are_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    Image.new("RGB", (6, 9)).save(tmp_path / "set" / "9999.png")
    with pytest.raises(ValueError, match=r"9999\.png: is 6x9 where those before it are 6x6; .* of one size$"):
        read(tmp_path / "set")


def wrong_dtype(path: Path) -> None:
    np.savez(path, PIXELS.astype(np.float32))


def wrong_shape(path: Path) -> None:
    np.savez(path, PIXELS[..., 0])


def another_name(path: Path) -> None:
    np.savez(path, images=PIXELS)


def cut_off(path: Path) -> None:
    np.savez(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(path: Path) -> None:
    np.savez_compressed(path, PIXELS)
    content = bytearray(path.read_bytes())
    content[3000:3200] = bytes(200)
    path.write_bytes(content)


def a_pickle(path: Path) -> None:
    np.savez(path, np.array([{}], dtype=object))


def text(path: Path) -> None:
    path.write_text("no archive")


def without_pixels(path: Path) -> None:
    np.savez(path, np.zeros((5, 0, 0, 3), np.uint8))


def transparent(path: Path) -> None:
    np.savez(path, np.zeros((5, 6, 6, 4), np.uint8))


def channels_first(path: Path) -> None:
    np.savez(path, PIXELS.transpose(0, 3, 1, 2))


def with_a_damaged_header(path: Path) -> None:
    """The zip file's own header of the array, not numpy's."""
    np.savez(path, PIXELS)
    path.write_bytes(b"XX" + path.read_bytes()[2:])


def of_unknown_compression(path: Path) -> None:
    np.savez(path, PIXELS)
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)


OTHER_LAYOUTS = [
    *(wrong_dtype, wrong_shape, another_name, cut_off, damaged, a_pickle, text),
    *(without_pixels, transparent, channels_first, with_a_damaged_header, of_unknown_compression),
]


@pytest.mark.parametrize("make", OTHER_LAYOUTS)
@pytest.mark.parametrize("reader", [read, survey])
def test_an_npz_of_another_layout_is_refused_in_one_line_that_names_it(
    tmp_path: Path, make: Callable[[Path], object], reader: Callable[[Path], object]
) -> None:
    path = tmp_path / "set.npz"
    make(path)
    with pytest.raises(ValueError, match=r"^\S*set\.npz: [^\n]*$"):
        reader(path)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_folder_without_a_picture_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="has no pictures"):
        read(tmp_path)


def a_picture(path: Path) -> None:
    Image.new("RGB", (6, 6)).save(path, "png")


def an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, PIXELS)


def a_compressed_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz"):
        pass


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (a_picture, "a.png"),
        (an_array, "a.npy"),
        (a_compressed_tar, "a.tar.gz"),
        (a_compressed_tar, "a.tgz"),
        (text, "a.txt"),
        (Path.touch, "a"),
    ],
)
def test_a_file_that_is_no_set_is_refused_with_what_a_set_may_be(
    tmp_path: Path, make: Callable[[Path], object], name: str
) -> None:
    make(tmp_path / name)
    readers: tuple[Callable[[Path], object], ...] = (read, survey)
    for reader in readers:
        with pytest.raises(ValueError, match=rf"/{name}: is no set of pictures; a set is a folder, .* \.npz$"):
            reader(tmp_path / name)


def test_images_in_fortran_order_are_refused_by_that_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", np.asfortranarray(PIXELS))
    with pytest.raises(ValueError, match=r"set\.npz: arr_0 is in Fortran order"):
        read(tmp_path / "set.npz")


def test_missing_source_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file or folder"):
        open_pictures(tmp_path / "none", 0)
