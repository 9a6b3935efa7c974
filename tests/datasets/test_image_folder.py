from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_folder import ImageFolder, center_crop, random_crop, read_folder, reduce_to
from datasets.listing import Labels, find_files, label_pictures


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place, name in enumerate(["dog_2.png", "cat_1.PNG", "eel_x_1.jpg", "cat_9.gif", "ant_0.png", "cat_7.webp"]):
        picture(20 + place, 16, place).save(tmp_path / name)
    return tmp_path


def listed(folder: Path) -> Labels:
    return label_pictures(folder, find_files(folder)[0])


def test_processes_share_the_files_without_overlap_and_agree_on_labels(folder: Path) -> None:
    whole = ImageFolder(listed(folder), 8)
    parts = [ImageFolder(listed(folder), 8, rank=rank, world_size=4) for rank in range(4)]
    assert [part.files for part in parts] == [whole.files[rank::4] for rank in range(4)]
    assert parts[1].labels == whole.labels[1::4]


def test_rank_without_images_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="rank 7 of 8"):
        ImageFolder(listed(folder), 8, rank=7, world_size=8)


def test_item_that_is_no_picture_is_named(folder: Path) -> None:
    (folder / "cat_1.PNG").write_bytes(b"")
    data = ImageFolder(listed(folder), 8)
    with pytest.raises(ValueError, match=r"cat_1\.PNG: is empty$"):
        data[data.files.index(folder / "cat_1.PNG")]


def test_folder_is_read_as_its_pictures_are_decoded_one_by_one(folder: Path) -> None:
    reading, data = read_folder(folder, 8), ImageFolder(listed(folder), 8, flip=False)
    assert reading.labels == listed(folder)
    assert all(torch.equal(reading.images[index], data[index][0]) for index in range(len(data)))


@pytest.mark.parametrize("size", [(8, 8), (15, 8), (100, 37), (33, 64), (9, 31)])
def test_short_side_is_exact_whatever_the_picture(size: tuple[int, int]) -> None:
    assert min(reduce_to(picture(*size), 8).size) == 8
    assert center_crop(picture(*size), 8).size == (8, 8)


def test_halving_averages_two_by_two_before_the_bicubic_step() -> None:
    small = picture(16, 8)
    # pairs that differ by 2 about each value: a bicubic reduction would weigh in their neighbours
    pixels = np.asarray(small).clip(1, 254).repeat(2, axis=0).repeat(2, axis=1)
    pixels[:, ::2] -= 1
    pixels[:, 1::2] += 1
    reduced = reduce_to(Image.fromarray(pixels), 8)  # 16 >= 2 * 8: one halving, and then the size is exact
    assert np.array_equal(np.asarray(reduced), np.asarray(small).clip(1, 254))


def test_centre_is_found_with_floor_offsets() -> None:
    image = picture(13, 8)
    assert np.array_equal(np.asarray(center_crop(image, 8)), np.asarray(image)[:, 2:10])


def test_random_crop_draws_every_short_side_and_is_a_window_of_it() -> None:
    image, generator = picture(64, 48), np.random.default_rng(1)
    windows = {
        size: np.lib.stride_tricks.sliding_window_view(np.asarray(reduce_to(image, size)), (8, 8, 3))
        for size in range(8, 11)
    }
    seen: set[int] = set()
    for _ in range(60):
        crop = np.asarray(random_crop(image, 8, generator))
        fits = {size for size, each in windows.items() if (each == crop).all(axis=(-3, -2, -1)).any()}
        assert fits
        seen |= fits
    assert seen == {8, 9, 10}


def test_flip_shows_both_sides_and_can_be_turned_off(folder: Path) -> None:
    plain = ImageFolder(listed(folder), 8, flip=False)[1][0]
    flipping = ImageFolder(listed(folder), 8)
    torch.manual_seed(0)
    seen = [flipping[1][0] for _ in range(20)]
    mirrored = [torch.equal(each, plain.flip(2)) for each in seen]
    assert all(torch.equal(each, plain) or other for each, other in zip(seen, mirrored, strict=True))
    assert 0 < sum(mirrored) < 20
