import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.resample import LossSecondMomentSampler, UniformSampler, importance, timesteps_at

PROPERTY = settings(max_examples=50)


@PROPERTY
@given(pairs=st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 10)), min_size=1, max_size=20))
def test_importance_weights_keep_the_mean_loss_unbiased(pairs: list[tuple[float, float]]) -> None:
    weights, losses = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    expected = (weights / weights.sum() * importance(weights) * losses).sum()
    torch.testing.assert_close(expected, losses.mean())


def test_positions_draw_timesteps_by_their_weights() -> None:
    weights = filled_sampler().weights()
    t = timesteps_at(weights, torch.arange(1000, dtype=torch.float64) / 1000)
    torch.testing.assert_close(
        torch.bincount(t, minlength=4) / 1000, (weights / weights.sum()).float(), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("position", [0.0, 1 - 2**-53])
def test_first_and_last_position_draw_a_timestep(position: float) -> None:
    assert 0 <= int(timesteps_at(torch.tensor([0.1, 0.2]).double(), torch.tensor([position]).double())) < 2


def filled_sampler() -> LossSecondMomentSampler:
    sampler = LossSecondMomentSampler(4, history=2, uniform_share=0.01)
    for _ in range(2):
        sampler.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    return sampler


def test_uniform_draws_weigh_one() -> None:
    weights = UniformSampler(10).weights()
    t = timesteps_at(weights, torch.arange(200, dtype=torch.float64) / 200)
    assert torch.equal(torch.bincount(t), torch.full((10,), 20))
    assert importance(weights).tolist() == [1.0] * 10


def test_second_moment_is_uniform_until_every_timestep_has_a_full_row() -> None:
    sampler = LossSecondMomentSampler(3, history=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0]))
    assert sampler.weights().tolist() == [1.0, 1.0, 1.0]
    sampler.update(torch.tensor([2]), torch.tensor([1.0]))
    assert sampler.weights()[0] > sampler.weights()[1]


def test_second_moment_forgets_the_oldest_loss() -> None:
    sampler = filled_sampler()
    sampler.update(torch.tensor([0, 0]), torch.tensor([5.0, 6.0]))
    assert sampler.history[0].tolist() == [5.0, 6.0]


def test_no_timestep_is_ever_forgotten() -> None:
    sampler = LossSecondMomentSampler(2, history=1, uniform_share=0.001)
    sampler.update(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(sampler.weights(), torch.tensor([0.0005, 0.9995], dtype=torch.float64))
