"""Runs are trained on sets of every form, divided, and decoded at every use if they exceed memory."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints.presets import SHAPE_NAMES
from tests.training.samples import write_npz
from training import data
from training.config import ConfigError
from training.data import open_data
from training.images import ImagesOnDisk
from training.samples import Samples, batches
from training.sections import Data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(8):
        name = ("cat", "dog")[index % 2]
        (tmp_path / name).mkdir(exist_ok=True)
        Image.effect_noise((40, 30), 80).save(tmp_path / name / f"{index}.png")
    return tmp_path


def opened(path: Path, tmp_path: Path, size: int = 16, **changes: object) -> data.Split:
    return open_data(Data.model_validate({"path": str(path), **changes}), size, tmp_path)


def test_set_larger_than_memory_is_decoded_to_the_same_pixels(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = opened(photos, tmp_path, padding=2).training
    monkeypatch.setattr(data, "MEMORY_BYTES", 1)
    visited = opened(photos, tmp_path, padding=2).training
    assert isinstance(visited, ImagesOnDisk)
    assert visited.class_names == in_memory.class_names == ("cat", "dog")
    assert torch.equal(visited.class_labels, in_memory.class_labels)
    assert all(torch.equal(visited.pixels(i, None), in_memory.pixels(i, None)) for i in range(len(in_memory)))


def test_random_crops_are_of_whole_pictures_and_repeat(photos: Path, tmp_path: Path) -> None:
    split = opened(photos, tmp_path, random_crop=True)
    settings = Data(path=str(photos), random_crop=True, loader_processes=2)
    one = Samples(split.training, settings, 3)
    again = next(batches(one, 4, 0, 0, 1))
    assert torch.equal(one.batch(range(4)).x0, again.x0)
    crops = {bytes(split.training.pixels(0, np.random.default_rng(seed)).numpy()) for seed in range(20)}
    assert len(crops) > 10


def test_damaged_picture_is_named_once_and_the_next_stands_in(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "0.png").write_bytes((photos / "cat" / "0.png").read_bytes()[:200])
    images = opened(photos, tmp_path, random_crop=True).training
    capsys.readouterr()
    assert torch.equal(images.pixels(0, None), images.pixels(1, None))
    images.pixels(0, None)
    assert capsys.readouterr().out.count("0.png: cannot be decoded") == 1


def test_images_are_held_out_by_the_hash_of_their_stored_bytes(photos: Path, tmp_path: Path) -> None:
    split = opened(photos, tmp_path, held_out_below=128)
    files = sorted(photos.rglob("*.png"))
    chosen = [file for file in files if hashlib.sha256(file.read_bytes()).digest()[0] < 128]
    assert len(split.held_out) == len(chosen)
    assert len(split.training) == len(files) - len(chosen)
    with pytest.raises(ConfigError, match="leaves no image to train on"):
        opened(write_npz(tmp_path / "one.npz", 1), tmp_path, 8, held_out_below=255)


def test_fingerprint_distinguishes_sets(photos: Path, tmp_path: Path) -> None:
    before = [opened(photos, tmp_path, random_crop=crop).training.fingerprint for crop in (False, True)]
    (photos / "eel").mkdir()
    Image.new("RGB", (20, 20)).save(photos / "eel" / "0.png")
    after = [opened(photos, tmp_path, random_crop=crop).training.fingerprint for crop in (False, True)]
    assert len({*before, *after}) == 4


def test_renders_are_kept_and_read_back_the_same(tmp_path: Path) -> None:
    first, again = (open_data(Data(source="shapes", count=20), 8, tmp_path).training for _ in range(2))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert first.class_names == SHAPE_NAMES
    assert first.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "missing"}, "there is no such file or folder"),
        (
            {"path": "images.npz", "padding": 1},
            "its images are 10x10 with their padding, where network.image_size is 8",
        ),
        ({"path": "plain.npz"}, r"has no labels \(arr_1\); set data.labelled = false"),
        ({"path": "floats.npz"}, "arr_0 is float32 .* is needed"),
        ({"path": "negative.npz"}, "arr_1 must have an integer label, 0 or more, for each of the 2 images"),
    ],
)
def test_images_that_do_not_fit_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(Path("images.npz"))
    np.savez("plain.npz", np.zeros((2, 8, 8, 3), np.uint8))
    np.savez("negative.npz", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, -1]))
    np.savez("floats.npz", np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ConfigError, match=message):
        open_data(Data.model_validate(changes), 8, tmp_path)
