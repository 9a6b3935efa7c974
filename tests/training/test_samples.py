"""The random draws of a training sample are a function of the seed and of the number of the sample."""

import itertools

import pytest
import torch

from tests.training.samples import images
from training.augment import recolour
from training.samples import Batch, Samples, batches
from training.sections import Data

SETTINGS = Data(path="images.npz", random_crop=True)


def take(count: int, batch_size: int, first: int = 0, rank: int = 0, size: int = 1, **changes: int) -> list[Batch]:
    samples = Samples(images(), SETTINGS.model_copy(update=changes), 7, more_noise=True)
    return list(itertools.islice(batches(samples, batch_size, first, rank, size), count))


def joined(parts: list[Batch]) -> list[torch.Tensor]:
    return [torch.cat(column) for column in zip(*(vars(each).values() for each in parts), strict=True)]


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(joined(one), joined(other), strict=True):
        assert torch.equal(a, b)


def test_draws_do_not_depend_on_the_batch_size() -> None:
    assert_equal(take(6, 4), take(3, 8))


def test_run_that_begins_at_a_step_draws_what_it_would_have_drawn() -> None:
    assert_equal(take(5, 4)[2:], take(3, 4, first=2))


def test_processes_share_a_batch_in_turns() -> None:
    shares = [take(3, 4, rank=rank, size=2) for rank in range(2)]
    for whole, *parts in zip(take(3, 4), *shares, strict=True):
        assert torch.equal(whole.noise, torch.stack([each.noise for each in parts], dim=1).flatten(0, 1))


def test_an_epoch_has_each_image_once() -> None:
    labels = [torch.cat([each.class_labels for each in take(4, 4, first=first)]) for first in (0, 4)]
    assert all(torch.equal(each.sort().values, images().class_labels.sort().values) for each in labels)
    assert not torch.equal(*labels)


def test_other_processes_load_the_same_samples() -> None:
    assert_equal(take(3, 4), take(3, 4, loader_processes=2))


def test_another_seed_draws_other_noise() -> None:
    one, other = (Samples(images(), SETTINGS, seed).batch(range(4)) for seed in (1, 2))
    assert not torch.equal(one.noise, other.noise)


def test_colours_are_drawn_away_from_grey_up_to_the_factor_given() -> None:
    data = images(2)
    data.images[:] = torch.tensor([100, 110, 120], dtype=torch.uint8)[:, None, None]
    samples = Samples(data, Data(path="images.npz", saturation=4.0, flip=False), 0)
    drawn = torch.stack([samples[number][0][:, 0, 0] for number in range(400)]).int()
    assert set(drawn[:, 1].tolist()) == {110}  # the grey
    assert (drawn[:, 2] - 110 == 110 - drawn[:, 0]).all()
    assert drawn[:, 2].min() == 120
    assert drawn[:, 2].max() == 150
    assert 150 < int((drawn[:, 2] > 130).sum()) < 250  # half: factors are uniform in their logarithm


def test_brightness_multiplies_or_divides_up_to_the_factor_given() -> None:
    data = images(2)
    data.images[:] = 100
    samples = Samples(data, Data(path="images.npz", brightness=2.0, flip=False), 0)
    drawn = torch.stack([samples[number][0][:, 0, 0] for number in range(400)])
    assert (drawn == drawn[:, :1]).all()
    assert 50 <= drawn.min() < 53
    assert 195 < drawn.max() <= 200
    assert 150 < int((drawn[:, 0] > 100).sum()) < 250


def test_tint_is_drawn_for_each_colour_by_itself() -> None:
    data = images(2)
    data.images[:] = 128
    samples = Samples(data, Data(path="images.npz", tint=5.0, flip=False), 0)
    drawn = torch.stack([samples[number][0][:, 0, 0] for number in range(1000)]).double() - 128
    assert drawn.mean().abs() < 0.5
    assert (drawn.std(dim=0) - 5).abs().max() < 0.4
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.15


def test_colours_beyond_a_pixels_range_are_clipped() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None]
    recoloured = recolour(pixels, saturation=9.0, brightness=1.0, tint=torch.zeros(3))
    assert recoloured.flatten().tolist() == [0, 131, 255]


def test_flips_are_drawn_for_half_of_the_images() -> None:
    data = images(2)
    data.images[:, :, :, :4], data.images[:, :, :, 4:] = 0, 255
    samples = Samples(data, Data(path="images.npz"), 0)
    flipped = [bool(samples[number][0][0, 0, 0] > 0) for number in range(400)]
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize("size", [8, 32])
def test_random_crop_keeps_size_and_stays_inside(size: int) -> None:
    data = images(1, size)
    samples = Samples(data, Data(path="images.npz", random_crop=True, flip=False), 0)
    low, high = int(data.images.min()), int(data.images.max())
    for number in range(50):
        pixels = samples[number][0]
        assert pixels.shape == (3, size, size)
        assert low <= int(pixels.min())
        assert int(pixels.max()) <= high
