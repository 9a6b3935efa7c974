"""Unusable data or states end in one line with the fault and a remedy; the last good state stays."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runfolder.folder import CONFIG, STATE, RunFolderError
from tests.training.samples import config, write_npz
from tests.training.test_resume import step_of
from training.config import ConfigError
from training.data import open_data
from training.sections import Data
from training.session import Request, train


def photo(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


def idx(*shape: int) -> bytes:
    return gzip.compress(
        struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + bytes(np.prod(shape))
    )


def npz(*arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path / "set.npz", *arrays)


def cut_npz(path: Path) -> None:
    whole = write_npz(path / "set.npz").read_bytes()
    (path / "set.npz").write_bytes(whole[: len(whole) // 2])


def npy_by_another_name(path: Path) -> None:
    with (path / "set.npz").open("wb") as file:
        np.save(file, np.zeros((2, 8, 8, 3), np.uint8))


def no_idx_images(path: Path) -> None:
    (path / "train-images-idx3-ubyte.gz").write_bytes(idx(0, 8, 8))
    (path / "train-labels-idx1-ubyte.gz").write_bytes(idx(0))


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (cut_npz, "set.npz", "set.npz: is no .npz file, or is damaged"),
        (npy_by_another_name, "set.npz", "set.npz: is no .npz file, or is damaged"),
        (lambda path: (path / "set.npz").write_text("not a set"), "set.npz", "set.npz: is no .npz file, or is damaged"),
        (npz(IMAGES[:0], np.zeros(0, np.int64)), "set.npz", "set.npz: has no images"),
        (npz(IMAGES[..., :1]), "set.npz", r"arr_0 is uint8 \(2, 8, 8, 1\); uint8 \[N, H, W, 3\] is needed"),
        (
            npz(IMAGES, np.array([0, 10**9])),
            "set.npz",
            "arr_1 has the label 1000000000; labels count the classes, 100000",
        ),
        (npz(IMAGES, np.array([0, 2**64 - 1], np.uint64)), "set.npz", "arr_1 has the label 18446744073709551615"),
        (
            npz(IMAGES, np.array([0.0, 1.0])),
            "set.npz",
            "arr_1 must have an integer label, 0 or more, for each of the 2 images",
        ),
        (no_idx_images, "", "train-images-idx3-ubyte.gz: has no images"),
        (lambda path: (path / "empty").mkdir(), "empty", "empty: has no pictures"),
        (
            lambda path: (path / "notes.txt").write_text("no picture"),
            "notes.txt",
            "notes.txt: is no set of pictures; a set is a folder",
        ),
    ],
)
def test_images_that_are_none_are_named_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], name: str, message: str
) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match=message) as raised:
        open_data(Data(path=str(tmp_path / name)), 8, tmp_path)
    assert str(raised.value).startswith("data.path: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"channel_mult": [0]}}, "a level has 0 channels; .* are multiples of 32"),
        ({"network": {"channel_mult": [1.3]}}, "a level has 41 channels"),
        ({"network": {"channel_mult": [-1]}}, "a level has -32 channels"),
        (
            {"kind": "judge", "objective": {"label_dropout": 0}, "network": {"widths": [32, 40]}},
            "a level has 40 channe",
        ),
        ({"network": {"widths": []}}, "network.widths"),
        (
            {"network": {"num_head_channels": 7}},
            "num_head_channels or num_heads is 7, which does not divide 32 channels",
        ),
        ({"network": {"num_head_channels": 0}}, "num_head_channels or num_heads is 0"),
        ({"network": {"num_head_channels": -1, "num_heads": 3}}, "num_head_channels or num_heads is 3"),
        ({"network": {"num_head_channels": -2}}, "network.num_head_channels"),
        (
            {"kind": "classifier", "objective": {"label_dropout": 0}, "network": {"num_head_channels": -1}},
            "network.pool = 'attention' needs network.num_head_channels",
        ),
    ],
)
def test_network_that_cannot_be_built_is_refused_by_its_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("toaster", "'toaster' is none of auto, cpu, cuda, cuda:N and mps"),
        ("cuda:99", "'cuda:99' is not on this machine"),
        ("meta", "'meta' is not on this machine"),
    ],
)
def test_missing_device_is_named_in_one_line(tmp_path: Path, device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config(compute={"device": device}), Request(tmp_path / "run"))


def test_one_image_is_trained_on(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "only.png")
    data, objective = {"path": str(tmp_path / "photos"), "labelled": False}, {"label_dropout": 0}
    assert train(config(data=data, objective=objective), Request(tmp_path / "run"))
    assert step_of(tmp_path / "run") == 4


def test_images_without_any_class_are_trained_on_only_with_labelled_false(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"set data\.labelled = false"):
        train(config(data={"path": str(path)}), Request(tmp_path / "run"))
    plain = config(data={"path": str(path), "labelled": False}, objective={"label_dropout": 0})
    assert train(plain, Request(tmp_path / "run"))


def test_damaged_file_is_skipped_by_name_and_refused_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(4):
        photo(tmp_path / "ab"[index % 2] / f"{index}.png")
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:60])
    (tmp_path / "b" / "foreign.jpg").write_text("no picture")
    assert len(open_data(Data(path=str(tmp_path)), 8, tmp_path).training) == 4
    printed = capsys.readouterr().out
    assert "cut.png" in printed
    assert "foreign.jpg" in printed
    with pytest.raises(ConfigError, match=r"data\.strict allows none of this: .* \(2 in all\)"):
        open_data(Data(path=str(tmp_path), strict=True), 8, tmp_path)


@pytest.mark.parametrize("random_crop", [False, True], ids=["decoded once", "decoded at every use"])
@pytest.mark.parametrize("name", ["0.png", "notes.txt"])
def test_strict_refuses_a_file_that_cannot_be_used_before_training(
    tmp_path: Path, random_crop: bool, name: str
) -> None:
    photo(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / name).write_text("no picture")
    assert len(open_data(Data(path=str(tmp_path), random_crop=random_crop), 8, tmp_path).training) >= 1
    with pytest.raises(ConfigError, match=rf"data.strict allows none of this: {name} .* \(1 in all\)"):
        open_data(Data(path=str(tmp_path), strict=True, random_crop=random_crop), 8, tmp_path)


@pytest.mark.parametrize("random_crop", [False, True], ids=["decoded once", "decoded at every use"])
def test_strict_takes_a_picture_whatever_its_name_ends_with(tmp_path: Path, random_crop: bool) -> None:
    photo(tmp_path / "cat" / "1.png")
    photo(tmp_path / "cat" / "2.png")
    (tmp_path / "cat" / "2.png").rename(tmp_path / "cat" / "2")
    settings = Data(path=str(tmp_path), strict=True, random_crop=random_crop)
    assert len(open_data(settings, 8, tmp_path).training) == 2


def test_picture_without_a_pictures_ending_is_named_where_it_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "cat" / "1.png")
    photo(tmp_path / "cat" / "2.png")
    (tmp_path / "cat" / "2.png").rename(tmp_path / "cat" / "2")
    assert len(open_data(Data(path=str(tmp_path), random_crop=True), 8, tmp_path).training) == 1
    printed = capsys.readouterr().out
    assert f"skipped: {tmp_path / 'cat' / '2'}: its name does not have the suffix of a picture" in printed
    assert "; decoded at every use; 1 file skipped" in printed


def test_classes_whose_names_differ_in_case_alone_are_distinguished_and_refused_on_request(
    tmp_path: Path,
) -> None:
    photo(tmp_path / "cat" / "0.png")
    photo(tmp_path / "Cat" / "1.png", "blue")
    assert open_data(Data(path=str(tmp_path)), 8, tmp_path).training.class_names == ("Cat", "cat")
    with pytest.raises(ConfigError, match="classes that differ in case alone"):
        open_data(Data(path=str(tmp_path), strict=True), 8, tmp_path)


def test_picture_that_disappears_during_training_is_named_and_the_run_is_not_resumed_on_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "run"
    for index in range(6):
        photo(photos / "ab"[index % 2] / f"{index}.png")
    data = {"path": str(photos), "random_crop": True, "loader_processes": 0}
    opened = open_data(Data.model_validate(data), 8, tmp_path).training
    assert train(config(data=data), Request(folder))
    (photos / "a" / "0.png").unlink()
    capsys.readouterr()
    assert opened.pixels(0, None).shape == (3, 8, 8)
    assert "0.png: " in capsys.readouterr().out
    longer = config(data=data, optimiser={"steps": 6})
    with pytest.raises(ConfigError, match=r"the data have changed .*images \(6 before, 5 now\)"):
        train(longer, Request(folder, allow_changes={"optimiser.steps"}))
    assert step_of(folder) == 4


def test_run_of_an_earlier_version_is_resumed_and_one_of_a_later_version_is_refused_by_field(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "run"
    train(config(data=data), Request(folder))
    stored = json.loads((folder / CONFIG).read_text())
    del stored["process"]["grey"]
    (folder / CONFIG).write_text(json.dumps(stored))
    longer, allowed = config(data=data, optimiser={"steps": 6}), {"optimiser.steps"}
    assert train(longer, Request(folder, allow_changes=allowed))
    assert step_of(folder) == 6
    stored["process"]["temperature"] = 1
    (folder / CONFIG).write_text(json.dumps(stored))
    state = (folder / STATE).read_bytes()
    with pytest.raises(
        ConfigError, match=r"another version of this program: process\.temperature: is not a known field"
    ):
        train(longer, Request(folder, allow_changes=allowed))
    assert (folder / STATE).read_bytes() == state
    (folder / "run.json").write_text(json.dumps({"format": 99}))
    (folder / CONFIG).write_text(json.dumps(longer.model_dump(mode="json")))
    with pytest.raises(RunFolderError, match=r"run\.json: was written by another version of this program"):
        train(longer, Request(folder, allow_changes=allowed))


@pytest.mark.parametrize("betas", [[2.0, 0.999], [0.9, -1.0], [0.9, 1.0]])
def test_betas_outside_their_range_are_refused_by_their_field(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.betas\.\d"):
        config(optimiser={"betas": betas})


def test_folder_is_not_trained_in_if_a_run_would_overwrite_its_files(tmp_path: Path) -> None:
    data, folder = {"path": str(write_npz(tmp_path / "images.npz"))}, tmp_path / "mine"
    folder.mkdir()
    (folder / CONFIG).write_text("my own settings")
    with pytest.raises(RunFolderError, match=r"mine: has a config.json, and is no training run; give another folder"):
        train(config(data=data), Request(folder))
    assert [each.name for each in folder.iterdir()] == [CONFIG]
    assert (folder / CONFIG).read_text() == "my own settings"


@pytest.mark.parametrize("place", ["images.npz", "images.npz/run"])
def test_file_in_place_of_a_folder_is_named(tmp_path: Path, place: str) -> None:
    data = {"path": str(write_npz(tmp_path / "images.npz"))}
    with pytest.raises(RunFolderError, match=f"{place}: is no folder; give another with --out"):
        train(config(data=data), Request(tmp_path / place))
