"""Whole runs beside the official code's and diffusers', from the same noise and with the same draws."""

import random
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from guided_diffusion.respace import space_timesteps as official_timesteps
from torch import Tensor

from diffusion.grids import grid_timesteps
from diffusion.process import DiffusionProcess, VarianceType
from diffusion.schedule import Schedule, sampling_timesteps
from diffusion.solvers import dpmpp_2m_table
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, reverse_ddim_table, take_step
from tests.peers.processes import SHAPE, Network, both, draw_flags, draw_respacing
from vocabulary.sampling import Thresholding

CASES = range(20)


def assert_near(got: Tensor, want: Tensor, x: Tensor, sigma: float = 0.0) -> None:
    """Within 1e-4 of the largest value of where a run or a step began and ended: rounding of float32.

    A guided step of the official code also has pred_x0 as a difference of two numbers sigma times as large.
    """
    largest = max(float(each.abs().max()) for each in (x, want, torch.ones(())))
    assert float((got - want).abs().max()) < 1e-4 * largest + 4e-6 * sigma


def run(table: SamplerTable, network: Network, x: Tensor, draws: bool = True) -> Tensor:
    memory = torch.zeros_like(x)
    for row in range(len(table)):
        timesteps = table.timesteps[row].expand(len(x))
        noise = torch.randn_like(x) if draws else torch.zeros_like(x)
        rows = table.rows[row].expand(len(x), -1)
        x, _, memory = take_step(rows, x, network(x, timesteps), None, noise, memory)
    return x


@pytest.mark.parametrize("case", CASES)
def test_every_step_of_a_run_is_the_official_codes(case: int, draw: random.Random) -> None:
    flags = draw_flags(draw)
    process, _, official = both(flags, draw_respacing(draw, flags["steps"]))
    network, scale = Network(draw, flags["learn_sigma"]), draw.choice([0.0, 0.5, 3.0])
    # without the clamp, predictions from an eps that belongs to no image grow without bound
    clip = draw.random() < 0.5 or not flags["predict_xstart"]
    # at eta 1 the official code takes the root of a difference of equals in float32: its rounding, or NaN
    sampler, eta = draw.choice(["ddpm", "ddim"]), draw.choice([0.0, 0.4, 0.9])
    thresholding: Thresholding = "clip" if clip else "none"
    if sampler == "ddpm":
        table, step = ddpm_table(process, thresholding=thresholding), official.p_sample
    else:
        table, step = ddim_table(process, eta, thresholding=thresholding), partial(official.ddim_sample, eta=eta)
    cond_fn = (lambda x, t: scale * network.gradient(x, t)) if scale else None
    x = torch.randn(SHAPE)
    for row, t in enumerate(reversed(range(official.num_timesteps))):
        torch.manual_seed(row)
        kept = torch.full((len(x),), t)
        want = step(network, x, kept, clip_denoised=clip, cond_fn=cond_fn, model_kwargs={})["sample"]
        torch.manual_seed(row)
        timesteps = table.timesteps[row].expand(len(x))
        guidance = scale * network.gradient(x, timesteps) if scale else None
        rows = table.rows[row].expand(len(x), -1)
        got = take_step(rows, x, network(x, timesteps), guidance, torch.randn_like(x)).x_prev
        assert_near(got, want, x, float(process.schedule.sigma[t]))
        x = want


@pytest.mark.parametrize("case", CASES)
def test_encoding_is_the_official_codes(case: int, draw: random.Random) -> None:
    flags = draw_flags(draw)
    process, _, official = both(flags, draw_respacing(draw, flags["steps"]))
    network, x = Network(draw, flags["learn_sigma"]), torch.rand(SHAPE) * 2 - 1
    want = x
    for step in range(official.num_timesteps):
        t = torch.full((len(x),), step)
        want = official.ddim_reverse_sample(network, want, t)["sample"]
    assert_near(run(reverse_ddim_table(process), network, x, draws=False), want, x)


@pytest.mark.parametrize("case", CASES)
def test_grid_is_the_official_codes_where_it_has_one(case: int, draw: random.Random) -> None:
    count, num_steps = draw.choice([100, 250, 1000, 4000]), draw.randint(2, 100)
    assert sampling_timesteps(count, "ddpm", num_steps) == sorted(official_timesteps(count, str(num_steps)))
    try:
        want = sorted(official_timesteps(count, f"ddim{num_steps}"))
    except ValueError:
        return  # it has none, and ours has an even one
    assert sampling_timesteps(count, "ddim", num_steps) == want


def eps_process(draw: random.Random) -> tuple[DiffusionProcess, dict[str, object]]:
    """A process of a thousand timesteps that predicts eps, and diffusers' settings of the same."""
    schedule = Schedule.named(draw.choice(["linear", "cosine"]), 1000)
    process = DiffusionProcess(schedule, variance_type=VarianceType.FIXED_SMALL)
    return process, {"num_train_timesteps": 1000, "trained_betas": schedule.betas.numpy()}


@pytest.mark.parametrize("case", CASES)
def test_ddim_is_diffusers(case: int, draw: random.Random) -> None:
    process, settings = eps_process(draw)
    num_steps, eta, network, x = draw.choice([5, 10, 20, 50]), draw.random(), Network(draw, False), torch.randn(SHAPE)
    scheduler = DDIMScheduler(**settings, clip_sample=True, set_alpha_to_one=True, timestep_spacing="leading")
    scheduler.set_timesteps(num_steps)
    table = ddim_table(process.respaced(sampling_timesteps(1000, "ddim", num_steps)), eta)
    assert scheduler.timesteps.tolist() == table.timesteps.tolist()
    want = x
    torch.manual_seed(case)
    for t in scheduler.timesteps:
        output, noise = network(want, t.expand(len(x))), torch.randn_like(x)
        options = {"eta": eta, "variance_noise": noise, "use_clipped_model_output": True}
        want = scheduler.step(output, t, want, **options).prev_sample
    torch.manual_seed(case)
    assert_near(run(table, network, x), want, x)


@pytest.mark.parametrize("case", CASES)
def test_solver_of_second_order_is_diffusers(case: int, draw: random.Random) -> None:
    process, settings = eps_process(draw)
    num_steps, network, x = draw.randint(4, 20), Network(draw, False), torch.randn(SHAPE)
    kept = grid_timesteps(process.schedule, draw.choice(["logsnr", "karras"]), "dpmpp_2m", num_steps)
    table = dpmpp_2m_table(process.respaced(kept), thresholding="none")
    scheduler = DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    scheduler.set_timesteps(timesteps=kept[::-1])
    want = x
    for t in scheduler.timesteps:
        want = scheduler.step(network(want, t.expand(len(x))), t, want).prev_sample
    assert_near(run(table, network, x, draws=False), want, x)
