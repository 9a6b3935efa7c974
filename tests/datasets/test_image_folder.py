from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_folder import center_crop, random_crop, read_folder, reduce_to, square_pixels
from datasets.listing import Labels, find_files, label_pictures
from pictures.decoding import decode


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


def test_folder_is_read_as_its_pictures_are_decoded_one_by_one(folder: Path) -> None:
    reading = read_folder(folder, 8)
    assert reading.labels == listed(folder)
    for index, file in enumerate(reading.labels.files):
        assert torch.equal(reading.images[index], square_pixels(decode(file), 8))


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
