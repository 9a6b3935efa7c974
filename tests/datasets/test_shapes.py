from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datasets.render import render
from datasets.sdf import SHAPES
from datasets.shapes import label_of, render_set
from models.checkpoints.presets import SHAPE_NAMES


def each_shape(image_size: int, count: int = 10, seed: int = 3) -> Tensor:
    indices = torch.arange(count)
    return render(label_of(indices), indices, seed=seed, image_size=image_size)


def test_shapes_are_in_the_order_of_the_class_names() -> None:
    assert tuple(shape.distance.__name__ for shape in SHAPES) == SHAPE_NAMES


@pytest.fixture(scope="module")
def alone() -> list[Tensor]:
    """Images 0 to 19, each rendered by itself."""
    return [render(label_of(each), each, seed=3, image_size=8) for each in torch.arange(20).split(1)]


@settings(max_examples=8)
@given(indices=st.lists(st.integers(0, 19), min_size=1, max_size=12))
def test_image_is_the_same_bytes_in_any_batch(alone: list[Tensor], indices: list[int]) -> None:
    batch = torch.tensor(indices)
    assert torch.equal(
        render(label_of(batch), batch, seed=3, image_size=8), torch.cat([alone[index] for index in indices])
    )


def test_image_depends_on_the_seed_and_the_index() -> None:
    indices = torch.tensor([0, 10])
    first, second = render(label_of(indices), indices, seed=3, image_size=16)
    other = render(label_of(indices), indices, seed=4, image_size=16)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other[0])


def test_large_picture_shows_the_same_scene() -> None:
    small, large = each_shape(32, 20).float(), each_shape(64, 20).float()
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    error = (small - shrunk).abs().flatten(1).mean(dim=1)
    assert error.max() < 1.5  # of 255; outlines alone differ
    assert (small[0] - shrunk[10]).abs().mean() > 15  # two spheres of the set, to place that


def test_every_image_shows_a_shape_well_inside_the_frame() -> None:
    images = each_shape(32, 100).float()
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    scatter = images.std(dim=(2, 3)).mean(dim=1)
    assert scatter.min() > 8
    outer = images[:, :, border].std(dim=2).mean(dim=1)
    assert (outer < scatter).all()  # the border is backdrop, which is smooth


def test_pixel_values_use_the_range_without_clipping_much() -> None:
    images = each_shape(32, 100)
    assert images.dtype == torch.uint8
    assert images.min() < 20
    assert images.max() > 235
    assert (images == 255).float().mean() < 0.02


def test_no_value_is_lost_when_pixels_are_not_supersampled() -> None:
    indices = torch.arange(10)
    coarse = render(label_of(indices), indices, seed=3, image_size=32, supersample=1).float()
    assert (coarse - each_shape(32).float()).abs().mean() < 4


@pytest.mark.parametrize("labels", [[-1], [10], [0, 1]])
def test_wrong_labels_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="label"):
        render(torch.tensor(labels), torch.tensor([0]), seed=0, image_size=8)


def test_set_is_balanced_and_a_longer_one_begins_with_it() -> None:
    images, labels = render_set(40, 5, 8)
    assert torch.bincount(labels).tolist() == [4] * 10
    assert torch.equal(render_set(50, 5, 8)[0][:40], images)


def test_cached_set_is_read_back_and_leaves_no_partial_file(tmp_path: Path) -> None:
    images, labels = render_set(20, 5, 8, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again, same_labels = render_set(20, 5, 8, cache=tmp_path)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    assert file.stat().st_mtime_ns == written
    render_set(20, 6, 8, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
