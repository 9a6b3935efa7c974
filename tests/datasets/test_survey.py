"""The survey of a set of images, as JSON and on the terminal."""

import gzip
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from datasets.idx import read_idx
from datasets.survey import class_names


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 14), 50).convert("RGB").save(folder / name)
    return folder


def write_idx(path: Path, array: np.ndarray) -> Path:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))
    return path


def inspect(path: Path, out: Path) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(
        app, ["data", "inspect", str(path), "--json", str(out / "report.json"), "--sheet", str(out / "sheet.png")]
    )
    assert result.exit_code == 0, result.output
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 100
    return json.loads((out / "report.json").read_text()), result.output


def test_folder_is_counted_by_class_size_and_reason(tmp_path: Path) -> None:
    folder = fill(tmp_path / "two", "Cat/0.png", "cat/0.webp", "dog/0.png", "dog/1.jpg")
    (folder / "dog" / "notes.txt").write_text("none")
    (folder / "dog" / "2.png").write_bytes((folder / "dog" / "0.png").read_bytes()[:300])
    report, stderr = inspect(folder, tmp_path)
    assert report["images"] == 4
    assert report["classes"] == {"Cat": 1, "cat": 1, "dog": 2}
    assert report["sizes"] == {"20x14": 4}
    assert report["ignored"] == [str(folder / "dog" / "notes.txt")]
    (skipped,) = report["skipped"]
    assert skipped["file"] == str(folder / "dog" / "2.png")
    assert "damaged or cut off" in skipped["reason"]
    assert "classes that differ in case alone: Cat, cat" in stderr
    assert "4 images, 3 classes; a class for each folder" in stderr
    assert f"ignored: {folder / 'dog' / 'notes.txt'}: is not a picture\n" in stderr


def test_idx_files_are_counted_by_label(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "x-images-idx3-ubyte.gz", np.arange(4 * 28 * 28).reshape(4, 28, 28) % 256)
    write_idx(tmp_path / "x-labels-idx1-ubyte.gz", np.array([0, 1, 1, 2]))
    report, _ = inspect(images, tmp_path)
    assert (report["images"], report["classes"]) == (4, {"0": 1, "1": 2, "2": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file of bytes"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"abc", "has 3 bytes of data, but its header says 5"),
        (gzip.compress(b"\0\0\x08\x01", mtime=0)[:-6], "cannot be read"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        read_idx(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "there is no such file or folder"),
        ("empty", "has no pictures (0 files skipped, 0 ignored because they are not pictures)"),
        ("text", "has no pictures (0 files skipped, 1 ignored because they are not pictures)"),
    ],
)
def test_folder_without_pictures_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("none")
    result = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / name)])
    assert (result.exit_code, result.output) == (1, f"adm: {tmp_path / name}: {message}\n")


def test_classes_are_found_without_decoding_a_picture(tmp_path: Path) -> None:
    """Otherwise a large set would be read once more, only to learn whether it has classes."""
    for name in ("b/1.png", "a/2.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    assert class_names(tmp_path) == ["a", "b"]


def test_classes_of_an_npz_are_found_without_its_images_in_memory(tmp_path: Path) -> None:
    images, labels = np.zeros((1000, 64, 64, 3), np.uint8), np.arange(1000) % 3
    np.savez_compressed(tmp_path / "set.npz", images, labels)
    tracemalloc.start()
    names = class_names(tmp_path / "set.npz")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names == ["0", "1", "2"]
    assert most < images.nbytes / 10


def test_labels_that_do_not_fit_the_images_of_an_npz_are_refused_without_reading_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", np.zeros((4, 8, 8, 3), np.uint8), np.arange(3))
    with pytest.raises(
        ValueError, match=r"set\.npz: arr_1 must have an integer label, 0 or more, for each of the 4 images"
    ):
        class_names(tmp_path / "set.npz")
