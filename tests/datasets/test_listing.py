"""Training folders as people have them: which class each picture is of, and what is not used and why."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from datasets.image_folder import Reading, read_folder
from datasets.listing import LabelsFrom, find_files


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), "teal").save(folder / name)
    return folder


def classes(folder: Path, labels_from: LabelsFrom = "auto") -> dict[str, str]:
    """The class of each picture, by its path below the folder."""
    labels = read_folder(folder, 8, labels_from).labels
    pairs = zip(labels.files, labels.labels, strict=True)
    return {file.relative_to(folder).as_posix(): labels.classes[label] for file, label in pairs}


def skipped(reading: Reading) -> dict[str, str]:
    return {each.path.name: each.reason for each in reading.skipped}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat_0.png", "dog_0.png"], ["cat", "dog"]),
        (["cat/0.png", "dog/0.png"], ["cat", "dog"]),
        (["cat/img_0.png", "dog/img_0.png"], ["cat", "dog"]),
        (["all/train/cat/0.png", "all/train/dog/a/b/0.png"], ["cat", "dog"]),
        (["n01/n01_1.JPEG", "n02/n02_1.JPEG"], ["n01", "n02"]),
        (["cat_0.png", "more/dog_0.png"], ["cat", "dog"]),
        (["0.png", "1.webp", "2.bmp"], ["two"] * 3),
        (["only/0.png"], ["only"]),
        (["cat_0.png"], ["cat"]),
    ],
)
def test_class_is_given_by_folder_or_by_name(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    folder = fill(tmp_path / "two", *names)
    assert list(classes(folder).values()) == expected


def test_rule_can_be_chosen(tmp_path: Path) -> None:
    fill(tmp_path, "part0/cat_1.png", "part1/dog_1.png", "part1/cat_2.png")
    assert set(classes(tmp_path).values()) == {"part0", "part1"}
    assert list(classes(tmp_path, "name").values()) == ["cat", "cat", "dog"]


def test_pictures_without_a_class_are_skipped_by_name(tmp_path: Path) -> None:
    by_name = read_folder(fill(tmp_path / "names", "cat_0.png", "dog_0.png", "cover.png"), 8)
    assert by_name.labels.classes == ("cat", "dog")
    assert skipped(by_name) == {"cover.png": 'has no "_" after a class in its name'}
    by_folder = read_folder(fill(tmp_path / "folders", "cat/0.png", "dog/0.png", "cover.png"), 8)
    assert by_folder.labels.classes == ("cat", "dog")
    assert skipped(by_folder) == {"cover.png": "lies beside the folders of the classes"}


def test_what_is_no_picture_is_skipped_with_its_reason_and_changes_no_rule(tmp_path: Path) -> None:
    fill(tmp_path, "cat/0.png", "dog/0.jpg", "dog/1.jpg", ".hidden/0.png")
    Image.linear_gradient("L").save(tmp_path / "dog" / "0.jpg")
    whole = (tmp_path / "dog" / "0.jpg").read_bytes()
    (tmp_path / "dog" / "0.jpg").write_bytes(whole[: len(whole) - 200])
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "a_list.txt").write_text("cat dog")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / "cat" / "above").symlink_to(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    reading = read_folder(tmp_path, 8)
    assert [file.name for file in reading.labels.files] == ["0.png", "1.jpg"]
    assert skipped(reading) == {
        "0.jpg": "cannot be decoded: the JPEG file is damaged or cut off",
        "empty.png": "is empty",
        "a_list.txt": "is not a readable picture",
        "above": "is a link to a folder that it lies in",
        "gone.png": "is a broken link, or no file",
    }


def test_class_without_a_readable_picture_is_not_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "cat/0.png", "dog/0.png", "eel/0.png")
    (tmp_path / "dog" / "0.png").write_bytes(b"")
    assert read_folder(tmp_path, 8).labels.classes == ("cat", "eel")


def test_transparency_and_orientation_are_those_of_uploads(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "cat_0.png")
    assert read_folder(tmp_path, 8).images.unique().tolist() == [255]


@contextlib.contextmanager
def of_no_privileges() -> Iterator[None]:
    """Permissions count within the block, which they do not for root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["not listed", "not entered"])
def test_folder_that_may_not_be_opened_is_skipped_by_name_and_the_rest_is_read(mode: int) -> None:
    with tempfile.TemporaryDirectory() as given:  # pytest's own folders are closed to others than their owner
        folder = fill(Path(given), "cat/0.png", "dog/0.png")
        for path, own in ((folder, 0o755), (folder / "dog", 0o755), (folder / "cat", mode)):
            path.chmod(own)  # whatever the umask is, which our programs change
        try:
            with of_no_privileges():
                files, left_out = find_files(folder)
            assert files == [folder / "dog" / "0.png"]
            ((path, reason),) = left_out
            assert folder / "cat" in (path, path.parent)
            assert reason == "cannot be opened: Permission denied"
            folder.chmod(0o000)
            with of_no_privileges(), pytest.raises(PermissionError):
                find_files(folder)
        finally:
            for each in (folder, folder / "cat"):
                each.chmod(0o755)
