import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.losses import LossType, discretized_gaussian_log_likelihood, normal_kl, training_losses
from diffusion.process import DiffusionProcess, MeanType, VarianceType
from diffusion.schedule import Schedule
from tests.diffusion.bits_per_dim import prior_bpd

PROPERTY = settings(max_examples=50)
SHAPE = (4, 3, 4, 4)


def arguments(process: DiffusionProcess, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """output (with gradient), x0, x_t, t and noise."""
    generator = torch.Generator().manual_seed(seed)
    out, v, noise = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    x0 = torch.rand(SHAPE, generator=generator, dtype=torch.float64) * 2 - 1
    t = torch.tensor([0, 1, 50, 99])
    output = torch.cat([out, v.clamp(-1, 1)], dim=1) if process.variance_type.learned else out
    return output.requires_grad_(), x0, process.q_sample(x0, t, noise), t, noise


@pytest.mark.parametrize("mean_type", MeanType)
@pytest.mark.parametrize("loss_type", [LossType.MSE, LossType.RESCALED_MSE])
@pytest.mark.parametrize("variance_type", [VarianceType.LEARNED, VarianceType.LEARNED_RANGE])
def test_variational_part_of_the_hybrid_trains_the_variance_alone(
    mean_type: MeanType, loss_type: LossType, variance_type: VarianceType
) -> None:
    process = DiffusionProcess(Schedule.named("linear", 100), mean_type, variance_type)
    output, *rest = arguments(process)
    terms = training_losses(process, loss_type, output, *rest)
    assert terms.mse is not None
    (whole,) = torch.autograd.grad(terms.loss.sum(), output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms.mse.sum(), output)
    mean_part, variance_part = whole.chunk(2, dim=1)
    assert torch.equal(mean_part, of_mse.chunk(2, dim=1)[0])
    assert bool((variance_part != 0).any(dim=(1, 2, 3)).all())
    assert not of_mse.chunk(2, dim=1)[1].any()


def test_fixed_variance_leaves_the_mse_alone() -> None:
    process = DiffusionProcess(Schedule.named("linear", 100), MeanType.EPSILON, VarianceType.FIXED_LARGE)
    output, x0, x_t, t, noise = arguments(process)
    terms = training_losses(process, LossType.RESCALED_MSE, output, x0, x_t, t, noise)
    assert set(terms.named()) == {"loss", "mse"}
    torch.testing.assert_close(terms.loss, ((noise - output) ** 2).mean(dim=(1, 2, 3)))


def test_perfect_eps_has_no_mse() -> None:
    process = DiffusionProcess(Schedule.named("linear", 100))
    _, x0, x_t, t, noise = arguments(process)
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    terms = training_losses(process, LossType.MSE, output, x0, x_t, t, noise)
    assert terms.named()["mse"].tolist() == [0] * len(x0)


def test_rescaled_bound_is_the_bound_times_the_number_of_timesteps() -> None:
    process = DiffusionProcess(Schedule.named("linear", 100))
    output, *rest = arguments(process)
    one, scaled = (training_losses(process, kind, output, *rest) for kind in (LossType.KL, LossType.RESCALED_KL))
    torch.testing.assert_close(scaled.loss, 100 * one.loss)


@pytest.mark.parametrize(("num_timesteps", "share"), [(100, 0.1), (4000, 4.0)])
def test_rescaled_hybrid_weighs_the_bound_by_thousandths(num_timesteps: int, share: float) -> None:
    process = DiffusionProcess(Schedule.named("linear", num_timesteps))
    output, *rest = arguments(process)
    plain, rescaled = (
        training_losses(process, kind, output, *rest).named() for kind in (LossType.MSE, LossType.RESCALED_MSE)
    )
    torch.testing.assert_close(rescaled["vb"], share * plain["vb"])
    torch.testing.assert_close(rescaled["mse"], plain["mse"])


@PROPERTY
@given(mean=st.floats(-1.2, 1.2), log_scale=st.floats(-6, 1))
def test_probabilities_of_the_256_values_sum_to_one(mean: float, log_scale: float) -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_probability = discretized_gaussian_log_likelihood(
        values, torch.full_like(values, mean), torch.full_like(values, log_scale)
    )
    assert abs(log_probability.exp().sum().item() - 1) < 1e-6


@PROPERTY
@given(*[st.floats(-3, 3)] * 4)
def test_kl_is_positive_but_between_equals(mean1: float, log_var1: float, mean2: float, log_var2: float) -> None:
    m1, v1, m2, v2 = (torch.tensor(value, dtype=torch.float64) for value in (mean1, log_var1, mean2, log_var2))
    assert normal_kl(m1, v1, m2, v2).item() >= -1e-12
    assert normal_kl(m1, v1, m1, v1).item() == 0


def test_prior_bound_is_near_zero_where_the_last_step_is_all_noise() -> None:
    process = DiffusionProcess(Schedule.named("linear", 1000))
    bits = prior_bpd(process, torch.rand(3, 3, 8, 8) * 2 - 1)
    assert bool((bits >= 0).all())
    assert bool((bits < 1e-4).all())


def test_bound_is_in_bits() -> None:
    """At t > 0, a prediction with the true mean and another variance costs their KL, divided by ln 2."""
    process = DiffusionProcess(Schedule.named("linear", 100), MeanType.START_X, VarianceType.FIXED_LARGE)
    _, x0, x_t, t, noise = arguments(process)
    t = torch.full_like(t, 50)
    x_t = process.q_sample(x0, t, noise)
    bits = training_losses(process, LossType.KL, x0, x0, x_t, t, noise).loss
    small, large = process.schedule.posterior_log_variance[50].item(), process.schedule.betas[50].log().item()
    nats = 0.5 * (large - small - 1 + math.exp(small - large))
    torch.testing.assert_close(bits, torch.full_like(bits, nats / math.log(2)))
