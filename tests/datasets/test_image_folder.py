from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_folder import ImageFolder, center_crop, find_images, random_crop, reduce_to


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["b/dog_2.png", "b/cat_1.PNG", "a/eel_x_1.jpg", "cat_9.gif", "c.jpeg", "notes.txt", "b/deep/ant_0.png"]
    for place, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("no image")
        else:
            picture(20 + place, 16, place).save(file)
    return tmp_path


def test_files_are_found_at_any_depth_in_sorted_order(folder: Path) -> None:
    found = [str(each.relative_to(folder)) for each in find_images(folder)]
    assert found == ["a/eel_x_1.jpg", "b/cat_1.PNG", "b/deep/ant_0.png", "b/dog_2.png", "c.jpeg", "cat_9.gif"]


def test_label_is_the_number_of_the_text_before_the_first_underscore(folder: Path) -> None:
    data = ImageFolder(folder, 8, labelled=True)
    assert data.classes == ["ant", "c.jpeg", "cat", "dog", "eel"]
    assert [data[index][1] for index in range(len(data))] == [4, 2, 0, 3, 1, 2]


def test_processes_share_the_files_without_overlap_and_agree_on_labels(folder: Path) -> None:
    whole = ImageFolder(folder, 8, labelled=True)
    parts = [ImageFolder(folder, 8, labelled=True, rank=rank, world_size=4) for rank in range(4)]
    assert [part.files for part in parts] == [whole.files[rank::4] for rank in range(4)]
    assert all(part.classes == whole.classes for part in parts)
    assert parts[1].labels == whole.labels[1::4]


def test_folder_without_images_is_an_error_that_says_what_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "cat_1.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: holds no images \(\.gif, \.jpeg, \.jpg, \.png\)$"):
        ImageFolder(tmp_path, 8)


def test_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path}/cats: there is no such folder$"):
        ImageFolder(tmp_path / "cats", 8)


def test_rank_without_images_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="rank 7 of 8"):
        ImageFolder(folder, 8, rank=7, world_size=8)


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
    plain = ImageFolder(folder, 8, flip=False)[1][0]
    flipping = ImageFolder(folder, 8)
    torch.manual_seed(0)
    seen = [flipping[1][0] for _ in range(20)]
    mirrored = [torch.equal(each, plain.flip(2)) for each in seen]
    assert all(torch.equal(each, plain) or other for each, other in zip(seen, mirrored, strict=True))
    assert 0 < sum(mirrored) < 20
