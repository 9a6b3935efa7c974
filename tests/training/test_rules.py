"""Averages, learning rates, microbatches, augmentation and the pictures that show progress."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from diffusion.losses import LossTerms
from diffusion.process import Process
from diffusion.schedule import Schedule
from tests.training.samples import data
from training.augment import augment
from training.classifier_loss import accumulate_classifier
from training.ema import Ema
from training.optimisation import accumulate, warmed_rate
from training.preview import preview_images, write_grid

PROPERTY = settings(max_examples=50)


@PROPERTY
@given(rate=st.floats(0, 1), values=st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_average_follows_its_recurrence(rate: float, values: list[float]) -> None:
    ema = Ema({"w": torch.tensor(values[0], dtype=torch.float64)}, rate)
    expected = values[0]
    for value in values[1:]:
        ema.update({"w": torch.tensor(value, dtype=torch.float64)})
        expected = rate * expected + (1 - rate) * value
    assert ema.values["w"].item() == pytest.approx(expected)


def test_average_is_a_copy_from_the_start() -> None:
    network = nn.Linear(2, 2)
    ema = Ema(network.state_dict(), 0.9)
    before = ema.values["weight"].clone()
    nn.init.zeros_(network.weight)
    assert torch.equal(ema.values["weight"], before)


@PROPERTY
@given(
    step=st.integers(0, 1000),
    done=st.floats(0, 1),
    warmup_steps=st.integers(1, 300),
    decay_share=st.floats(0.01, 1),
)
def test_rate_never_leaves_its_range(step: int, done: float, warmup_steps: int, decay_share: float) -> None:
    rate = warmed_rate(1e-3, step, done, warmup_steps=warmup_steps, decay_share=decay_share)
    assert 0 <= rate <= 1e-3


def test_rate_warms_up_holds_and_falls_to_zero() -> None:
    def rate(step: int, done: float) -> float:
        return warmed_rate(1.0, step, done, warmup_steps=10, decay_share=0.4)

    assert [rate(step, 0) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert rate(500, 0.6) == 1.0
    assert rate(500, 0.8) == pytest.approx(0.5)
    assert rate(1000, 1.0) == 0.0


@PROPERTY
@given(count=st.integers(1, 9), microbatch=st.integers(1, 9))
def test_classifier_gradient_does_not_depend_on_the_microbatch(count: int, microbatch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator)
    gradients = []
    for size in (count, microbatch):
        classifier = nn.Bilinear(5, 1, 3, bias=False)
        nn.init.ones_(classifier.weight)
        accumulate_classifier(classifier, x, torch.ones(count, 1), labels, size)
        assert classifier.weight.grad is not None
        gradients.append(classifier.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@PROPERTY
@given(count=st.integers(1, 9), microbatch=st.integers(1, 9))
def test_diffusion_microbatches_add_up_each_as_its_own_mean(count: int, microbatch: int) -> None:
    weight, losses = nn.Parameter(torch.ones(())), torch.arange(1.0, count + 1)
    terms = accumulate(lambda part: LossTerms(weight * losses[part]), torch.ones(count), microbatch)
    assert torch.equal(terms["loss"], losses)
    means = [losses[start : start + microbatch].mean() for start in range(0, count, microbatch)]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.stack(means).sum())


@PROPERTY
@given(count=st.integers(1, 6), size=st.sampled_from([8, 32]), seed=st.integers(0, 2**32))
def test_augmented_images_keep_shape_and_range(count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    before = x.clone()
    augmented = augment(x, generator)
    assert augmented.shape == x.shape
    assert bool(((augmented >= -1) & (augmented <= 1)).all())
    assert torch.equal(x, before)


def test_augmentation_is_its_generators_and_each_images_own() -> None:
    x = torch.full((2, 3, 16, 16), 0.25)
    x[:, :, 4:12, 4:12] = -0.5
    first, again = (augment(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, augment(x, torch.Generator().manual_seed(4)))


def test_batch_is_drawn_from_the_set_with_its_labels() -> None:
    images = data()
    drawn, labels = images.draw(64, torch.Generator().manual_seed(0))
    assert drawn.shape == (64, 3, 8, 8)
    assert bool(((drawn >= -1) & (drawn <= 1)).all())
    assert torch.equal(drawn.mean(dim=(2, 3)).argmax(dim=1), labels)  # the colour tells the class


def test_preview_is_the_same_pictures_each_time() -> None:
    process = Process(Schedule.named("cosine", 1000))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.zeros_like(x)], dim=1)

    first, again = (preview_images(process, network, 3, (3, 8, 8)) for _ in range(2))
    assert torch.equal(first, again)
    assert bool(first.isfinite().all())


def test_grid_has_the_images_row_by_row(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(-1, 3, 2, 2)
    write_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (6, 4)
        assert [sheet.getpixel(place) for place in ((0, 0), (2, 0), (4, 0), (0, 2), (2, 2), (4, 2))] == [
            (value,) * 3 for value in (0, 63, 127, 191, 255, 0)
        ]
