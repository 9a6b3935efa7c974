"""What runs are trained on."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from models.presets import SHAPE_NAMES
from training.data import own_images, rendered_shapes


def test_own_images_are_cropped_and_labelled_by_their_names(tmp_path: Path) -> None:
    for name, colour in (("cat_1", "red"), ("ant_1", "blue"), ("cat_2", "red")):
        Image.new("RGB", (20, 14), colour).save(tmp_path / f"{name}.png")
    data = own_images(tmp_path, image_size=8)
    assert data.class_names == ("ant", "cat")
    assert data.images.shape == (3, 3, 8, 8)
    assert data.class_labels.tolist() == [0, 1, 1]
    assert data.images[0, :, 4, 4].tolist() == [0, 0, 255]


def test_folder_without_images_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images \(.gif, .jpeg, .jpg, .png\)"):
        own_images(tmp_path, image_size=8)


def test_rendered_set_is_kept_and_read_back_the_same(tmp_path: Path) -> None:
    first, again = (rendered_shapes(20, 8, tmp_path) for _ in range(2))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert first.class_names == SHAPE_NAMES
    assert torch.equal(first.images, again.images)


def test_batches_depend_on_the_generator_alone(tmp_path: Path) -> None:
    data = rendered_shapes(20, 8, tmp_path)
    one, other = (data.draw(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert one[0].abs().max() <= 1
