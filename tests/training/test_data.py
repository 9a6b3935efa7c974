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
    data, _ = own_images(tmp_path, image_size=8)
    assert data.class_names == ("ant", "cat")
    assert data.images.shape == (3, 3, 8, 8)
    assert data.class_labels.tolist() == [0, 1, 1]
    assert data.images[0, :, 4, 4].tolist() == [0, 0, 255]


def test_folder_without_images_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no pictures"):
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


def test_own_images_are_mirrored_half_of_the_time_and_renders_never(tmp_path: Path) -> None:
    Image.linear_gradient("L").rotate(90).save(tmp_path / "cat_1.png")
    data, _ = own_images(tmp_path, image_size=8)
    batch, _ = data.draw(64, torch.Generator().manual_seed(0))
    plain = data.images[0].float() / 127.5 - 1
    mirrored = [torch.allclose(image, plain.flip(2), atol=1e-5) for image in batch]
    assert all(m or torch.allclose(image, plain, atol=1e-5) for m, image in zip(mirrored, batch, strict=True))
    assert 16 < sum(mirrored) < 48
    assert not rendered_shapes(20, 8, tmp_path).flip
