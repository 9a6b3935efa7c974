"""The samplers against a Gaussian mixture, whose score is exact: orders, moments, and cost against DDIM."""

import pytest
import torch
from torch import Tensor

from diffusion.grids import grid_timesteps
from diffusion.schedule import Schedule
from tests.diffusion.mixture import Guided, Mixture, alpha_bar_of, integrate, levels_in_log_snr, sample

THREE = Mixture(
    weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    means=torch.tensor([[-0.6, -0.2], [0.5, 0.4], [0.1, -0.7]], dtype=torch.float64),
    covariances=torch.tensor(
        [[[0.04, 0.01], [0.01, 0.02]], [[0.01, 0.0], [0.0, 0.03]], [[0.02, -0.01], [-0.01, 0.02]]], dtype=torch.float64
    ),
)
ONE = THREE.restricted([0])
CLASS = [1, 2]  # components that are "y"
ORDERS = {"ddim": 1.0, "dpmpp_2m": 2.0, "heun": 2.0}


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels_in_time(num_steps: int) -> Tensor:
    """alpha_bar [num_steps] even in t, of the linear schedule in continuous time, from t = 0.1 to 1."""
    t = torch.linspace(0.1, 1, num_steps, dtype=torch.float64)
    return (-(0.1 * t + 9.95 * t**2)).exp()


def error(sampler: str, num_steps: int, target: Mixture | Guided, x: Tensor, exact: Tensor) -> float:
    """Mean distance from the finely integrated solution, after num_steps steps and the one to the clean image."""
    return float((sample(sampler, levels_in_log_snr(num_steps + 1), target, x) - exact).norm(dim=1).mean())


def slope(errors: dict[int, float]) -> float:
    """Order of convergence: the least-squares slope of -log error over log steps."""
    steps = torch.tensor(list(errors), dtype=torch.float64).log()
    logs = torch.tensor(list(errors.values()), dtype=torch.float64).log()
    apart = steps - steps.mean()
    return float(-(apart * logs).sum() / (apart * apart).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items())
@pytest.mark.parametrize("target", [THREE, Guided(THREE, CLASS, 2.0)], ids=["plain", "guided"])
def test_error_falls_with_the_solvers_order(sampler: str, order: float, target: Mixture | Guided) -> None:
    x = noise(32)
    exact = integrate(target.score, x)
    errors = {num_steps: error(sampler, num_steps, target, x, exact) for num_steps in (32, 64, 128, 256)}
    assert slope(errors) == pytest.approx(order, abs=0.15), errors


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items())
def test_order_holds_on_a_grid_that_is_even_in_t(sampler: str, order: float) -> None:
    x = noise(8)
    exact = sample("heun", levels_in_time(2000), ONE, x)
    errors = {
        num_steps: float((sample(sampler, levels_in_time(num_steps + 1), ONE, x) - exact).norm(dim=1).mean())
        for num_steps in (128, 256, 512)
    }
    assert slope(errors) == pytest.approx(order, abs=0.15), errors


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "evaluations_a_step"), [("dpmpp_2m", 1), ("heun", 2)])
@pytest.mark.parametrize("evaluations", [24, 48, 96])
def test_second_order_beats_ddim_at_equal_network_evaluations(
    sampler: str, evaluations_a_step: int, evaluations: int
) -> None:
    x = noise(64)
    exact = integrate(THREE.score, x)
    at_equal_cost = error(sampler, evaluations // evaluations_a_step, THREE, x, exact)
    assert at_equal_cost * 1.5 < error("ddim", evaluations, THREE, x, exact)


def affine_map(sampler: str, num_steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a sampler makes of a single Gaussian: its map is affine, so two more points and the
    origin determine it and no sample is drawn."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    span = torch.linspace(15.0, -15.0, num_steps, dtype=torch.float64)  # in the limit: from no image to no noise
    origin, *ends = sample(sampler, alpha_bar_of(span), ONE, points)
    matrix = torch.stack([end - origin for end in ends], dim=1)
    return origin, matrix @ matrix.T


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items())
def test_mean_and_covariance_of_a_gaussian_are_exact_in_the_limit(sampler: str, order: float) -> None:
    shifts = {}
    for num_steps in (64, 128, 256, 512):
        mean, covariance = affine_map(sampler, num_steps + 1)
        shifts[num_steps] = float((mean - ONE.mean).norm() + (covariance - ONE.covariance).norm())
    assert slope(shifts) == pytest.approx(order, abs=0.1), shifts
    assert shifts[512] < (5e-3 if order == 1 else 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "num_steps"), [("ddpm", 300), ("ddim", 300), ("dpmpp_2m", 60), ("heun", 60)])
def test_mean_and_covariance_of_the_mixture_are_within_monte_carlo_error(sampler: str, num_steps: int) -> None:
    x = sample(sampler, levels_in_log_snr(num_steps), THREE, noise(6_000, seed=1))
    assert_moments(x, THREE)


def assert_moments(x: Tensor, expected: Mixture) -> None:
    """Mean and covariance of samples [N, D] within 4 standard errors, each estimated from the samples."""
    apart = x - x.mean(dim=0)
    products = apart[:, :, None] * apart[:, None, :]
    for values, exact in ((x, expected.mean), (products, expected.covariance)):
        standard_error = values.std(dim=0) / len(x) ** 0.5
        assert bool(((values.mean(dim=0) - exact).abs() < 4 * standard_error).all()), (values.mean(dim=0), exact)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "num_steps"), [("ddpm", 300), ("ddim", 300), ("dpmpp_2m", 60), ("heun", 60)])
def test_guided_at_scale_1_gives_the_exact_posterior(sampler: str, num_steps: int) -> None:
    x = sample(sampler, levels_in_log_snr(num_steps), Guided(THREE, CLASS, 1.0), noise(6_000, seed=2))
    assert_moments(x, THREE.restricted(CLASS))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(("sampler", "most"), [("ddim", 0.03), ("dpmpp_2m", 1e-3), ("heun", 1e-3)])
def test_guided_at_any_scale_follows_the_guided_score(sampler: str, most: float, scale: float) -> None:
    target, x = Guided(THREE, CLASS, scale), noise(48, seed=3)
    assert error(sampler, 400, target, x, integrate(target.score, x)) < most


BROAD = Mixture(  # on a line: N(-1, 1) and N(1, 1), of which the second is y
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
    torch.ones(2, 1, 1, dtype=torch.float64),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "sampled", "power"),
    [
        (1.0, (1.000, 1.000), (1.000, 1.000)),
        (2.0, (1.612, 0.761), (1.290, 0.863)),
        (4.0, (2.346, 0.595), (1.539, 0.767)),
        (8.0, (3.255, 0.501), (1.770, 0.699)),
    ],
)
def test_guidance_at_another_scale_is_not_the_power_of_the_posterior(
    scale: float, sampled: tuple[float, float], power: tuple[float, float]
) -> None:
    """Mean and deviation, the figures of docs/samplers.md: noising and powers do not commute."""
    levels = alpha_bar_of(torch.linspace(8.0, -8.0, 161, dtype=torch.float64))
    quantiles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    x_noise = torch.special.ndtri(quantiles)[:, None]  # the ODE keeps the order on a line: no sampling error
    got = sample("dpmpp_2m", levels, Guided(BROAD, [1], scale), x_noise)[:, 0]
    assert (got.mean().item(), got.std().item()) == pytest.approx(sampled, abs=3e-3)
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    log_p = torch.logaddexp(-0.5 * (x + 1) ** 2, -0.5 * (x - 1) ** 2) + scale * torch.nn.functional.logsigmoid(2 * x)
    density = log_p.exp() / log_p.exp().sum()
    mean = (x * density).sum()
    std = ((x - mean) ** 2 * density).sum().sqrt()
    assert (mean.item(), std.item()) == pytest.approx(power, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_own_grid_of_a_solver_makes_it_one_of_second_order(sampler: str, schedule: str) -> None:
    """On whole timesteps, which limit the fall of the error. With DDIM's grid the error is twice that."""
    x, full = noise(16), Schedule.named(schedule, 1000)
    half_log_snr = -full.sigma.log()

    def error(time_grid: str | None, num_steps: int) -> float:
        kept = grid_timesteps(full, time_grid, sampler, num_steps)
        exact = integrate(THREE.score, x, (half_log_snr[kept[-1]].item(), half_log_snr[0].item()))
        return float((sample(sampler, full.alpha_bar[kept], THREE, x) - exact).norm(dim=1).mean())

    errors = {num_steps: error(None, num_steps) for num_steps in (12, 25, 50)}
    assert slope(errors) > 1.4, errors
    assert errors[25] < 0.5 * error("official", 25)
