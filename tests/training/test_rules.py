"""Averages, the learning rate, weights of the loss, augmentation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from training.augment import augment
from training.ema import Averages, combine, gamma_of, move, power_name
from training.objectives import mse_weights
from training.optimisation import learning_rate, parts
from training.sections import Objective, Optimiser

PROPERTY = settings(max_examples=50)


@PROPERTY
@given(decay=st.floats(0, 1), values=st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_average_follows_its_recurrence(decay: float, values: list[float]) -> None:
    average = {"w": torch.tensor([values[0]], dtype=torch.float64)}
    expected = values[0]
    for value in values[1:]:
        move(average, {"w": torch.tensor([value], dtype=torch.float64)}, decay)
        expected = decay * expected + (1 - decay) * value
    assert average["w"].item() == pytest.approx(expected)


def test_averages_are_copies_from_the_start() -> None:
    weights = {"w": torch.ones(2)}
    averages = Averages(weights, [0.9], [0.1])
    weights["w"].zero_()
    assert all(torch.equal(each["w"], torch.ones(2)) for each in averages.values.values())


@pytest.mark.parametrize("width", [0.03, 0.05, 0.1, 0.2])
def test_power_average_weighs_steps_by_a_power_of_the_relative_width_asked_for(width: float) -> None:
    steps, weights = 4000, {"w": torch.zeros(1, dtype=torch.float64)}
    averages, moments = Averages(weights, [], [width]), []
    for power in (1, 2):  # the mean of s and of s^2 under the profile, in units of the run
        averages = Averages(weights, [], [width])
        for step in range(1, steps + 1):
            averages.update({"w": torch.full((1,), (step / steps) ** power, dtype=torch.float64)}, step)
        moments.append(averages.values[power_name(width)]["w"].item())
    assert np.sqrt(moments[1] - moments[0] ** 2) == pytest.approx(width, rel=0.01)


def test_average_of_another_width_is_a_combination_of_stored_ones() -> None:
    steps, rng = 2000, np.random.default_rng(0)
    path = np.cumsum(rng.standard_normal(steps)) / np.sqrt(steps)
    weights = {"w": torch.zeros(1, dtype=torch.float64)}
    averages, stored = Averages(weights, [], [0.05, 0.1, 0.07]), {}
    for step in range(1, steps + 1):
        averages.update({"w": torch.tensor([path[step - 1]])}, step)
        if step % 250 == 0:
            for width in (0.05, 0.1):
                stored[step, width] = averages.values[power_name(width)]["w"].item()
    factors = combine(list(stored), (steps, 0.07))
    combined = sum(factor * value for factor, value in zip(factors, stored.values(), strict=True))
    wanted = averages.values[power_name(0.07)]["w"].item()
    assert combined == pytest.approx(wanted, abs=2e-3)
    assert abs(stored[steps, 0.05] - wanted) > 2e-2  # the nearest stored one is much farther away


def test_average_behind_all_stored_ones_is_refused() -> None:
    with pytest.raises(ValueError, match="no stored average reaches step 10"):
        combine([(5, 0.1)], (10, 0.1))


def test_gamma_of_the_published_widths() -> None:
    assert [round(gamma_of(width), 2) for width in (0.05, 0.10)] == [16.97, 6.94]  # EDM2, section 3.1


def test_rate_warms_up_stays_and_falls_to_zero() -> None:
    given_ = Optimiser(steps=1000, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_share=0.4)
    assert [learning_rate(given_, step) for step in (0, 4, 9, 10, 500)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate(given_, 800) == pytest.approx(0.5)
    assert learning_rate(given_, 1000) == 0.0
    constant = Optimiser(steps=10, batch_size=1, learning_rate=0.5)
    assert {learning_rate(constant, step) for step in range(10)} == {0.5}


@PROPERTY
@given(count=st.integers(1, 40), size=st.none() | st.integers(1, 9))
def test_microbatches_are_the_batch_in_order(count: int, size: int | None) -> None:
    taken = list(itertools.chain.from_iterable(range(count)[part] for part in parts(count, size)))
    assert taken == list(range(count))


@pytest.mark.parametrize("predict_xstart", [False, True])
def test_min_snr_weights_of_eps_and_x0_are_one_weighting(predict_xstart: bool) -> None:
    from diffusion.flags import select_types

    types = select_types(learn_sigma=True, sigma_small=False, predict_xstart=predict_xstart)
    process = DiffusionProcess(Schedule.named("cosine", 1000), types[0], types[1])
    weights = mse_weights(process, Objective(weighting="min-snr", min_snr_gamma=5))
    alpha_bar = process.schedule.alpha_bar
    snr = alpha_bar / (1 - alpha_bar)
    expected = snr.clamp(max=5) if predict_xstart else snr.clamp(max=5) / snr
    assert weights is not None
    torch.testing.assert_close(weights, expected)


@PROPERTY
@given(count=st.integers(1, 6), size=st.sampled_from([8, 32]), seed=st.integers(0, 2**32))
def test_augmented_images_keep_shape_and_range(count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    before = x.clone()
    uniforms = torch.rand(count, 20, generator=generator, dtype=torch.float64)
    augmented = augment(x, uniforms, torch.randn(x.shape, generator=generator), mirrors=True)
    assert augmented.shape == x.shape
    assert bool(((augmented >= -1) & (augmented <= 1)).all())
    assert torch.equal(x, before)


def test_augmentation_of_an_image_depends_on_its_own_draws_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.full((4, 3, 16, 16), 0.25)
    x[:, :, 4:12, 4:12] = -0.5
    uniforms, noise = (
        torch.rand(4, 20, generator=generator, dtype=torch.float64),
        torch.randn(x.shape, generator=generator),
    )
    together = augment(x, uniforms, noise, mirrors=True)
    alone = [augment(x[i : i + 1], uniforms[i : i + 1], noise[i : i + 1], mirrors=True) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together[0], together[1])


def test_images_that_may_not_be_mirrored_are_not() -> None:
    """Shoes that all point to the left: one that points to the right is of no class that was asked for."""
    generator = torch.Generator().manual_seed(3)
    uniforms = torch.rand(8, 20, generator=generator, dtype=torch.float64)
    uniforms[:, :2] = 0.5  # not shifted
    x = torch.linspace(-0.3, 0.3, 16).expand(8, 3, 16, 16)
    slopes = [
        (each[..., 8:].mean((1, 2, 3)) > each[..., :8].mean((1, 2, 3)))
        for mirrors in (False, True)
        for each in [augment(x, uniforms, torch.zeros_like(x), mirrors=mirrors)]
    ]
    assert torch.equal(slopes[0] ^ slopes[1], uniforms[:, 2] < 0.5)
