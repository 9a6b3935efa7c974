"""The tables against the plain formulas, in float64, and the laws that batching rests on, in float32."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.process import DiffusionProcess, MeanType, Prediction, VarianceType
from diffusion.schedule import Schedule, sampling_timesteps
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import (
    COLUMNS,
    SamplerTable,
    Step,
    ddim_table,
    ddpm_table,
    reverse_ddim_table,
    scale_eps,
    take_step,
)
from tests.diffusion.conversions import eps_from_x0
from tests.diffusion.plain_guidance import guide_mean, guide_score
from vocabulary.sampling import THRESHOLDINGS, Thresholding

PROPERTY = settings(max_examples=150)
SHAPE = (3, 2, 3)

processes = st.builds(
    lambda betas, mean_type, variance_type: DiffusionProcess(
        Schedule(torch.tensor(betas, dtype=torch.float64), torch.arange(len(betas)), len(betas)),
        mean_type,
        variance_type,
    ),
    st.lists(st.floats(1e-3, 0.7), min_size=1, max_size=10),
    st.sampled_from(MeanType),
    st.sampled_from(VarianceType),
)


@dataclass(frozen=True)
class Point:
    """Random arguments of one step at every timestep of a process at once: an image a timestep."""

    process: DiffusionProcess
    t: Tensor
    x: Tensor
    output: Tensor
    gradient: Tensor
    noise: Tensor

    @classmethod
    def random(cls, process: DiffusionProcess, seed: int) -> "Point":
        generator = torch.Generator().manual_seed(seed)
        count = process.schedule.num_timesteps
        x, out, v, gradient, noise = torch.randn(5, count, *SHAPE, generator=generator, dtype=torch.float64)
        output = torch.cat([out, v], dim=1) if process.variance_type.learned else out
        return cls(process, torch.arange(count), x, output, gradient, noise)

    def predict(self, *, clip: bool) -> Prediction:
        return self.process.predict(self.output, self.x, self.t, clip_denoised=clip)

    def step(self, table: SamplerTable, guidance: Tensor | None) -> Step:
        return take_step(table.rows.flip(0), self.x, self.output, guidance, self.noise)


def column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * (1 + want.abs().max().item()))


@PROPERTY
@given(process=processes, seed=st.integers(0, 2**32), clip=st.booleans(), scale=st.floats(0, 50))
def test_ddpm_step_is_algorithm_1(process: DiffusionProcess, seed: int, clip: bool, scale: float) -> None:
    point = Point.random(process, seed)
    predicted, guidance = point.predict(clip=clip), scale * point.gradient
    drawn = (point.t > 0)[:, None, None, None] * (0.5 * predicted.log_variance).exp() * point.noise
    table = ddpm_table(process, thresholding="clip" if clip else "none")
    x_prev, pred_x0, _ = point.step(table, guidance if scale else None)
    assert_near(pred_x0, predicted.pred_x0)
    assert_near(x_prev, predicted.mean + predicted.variance * guidance + drawn)
    in_float32 = guide_mean(predicted, guidance) + drawn  # as the official code computes it
    torch.testing.assert_close(x_prev, in_float32, rtol=1e-5, atol=1e-5 * (1 + in_float32.abs().max().item()))


@PROPERTY
@given(
    process=processes,
    seed=st.integers(0, 2**32),
    clip=st.booleans(),
    scale=st.floats(0, 50),
    eta=st.floats(0, 1),
)
def test_ddim_step_is_algorithm_2(process: DiffusionProcess, seed: int, clip: bool, scale: float, eta: float) -> None:
    point = Point.random(process, seed)
    guidance = scale * point.gradient if scale else None
    predicted = point.predict(clip=clip)
    if guidance is not None:
        predicted = guide_score(process, predicted, point.x, point.t, guidance)
    eps = eps_from_x0(process, point.x, point.t, predicted.pred_x0)
    now, before = column(process.schedule.alpha_bar), column(process.schedule.alpha_bar_prev)
    std = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
    direction = (1 - before - std**2).clamp(min=0).sqrt()
    drawn = (point.t > 0)[:, None, None, None] * std * point.noise
    x_prev, pred_x0, _ = point.step(ddim_table(process, eta, thresholding="clip" if clip else "none"), guidance)
    assert_near(pred_x0, predicted.pred_x0)
    assert_near(x_prev, before.sqrt() * predicted.pred_x0 + direction * eps + drawn)


@PROPERTY
@given(process=processes, seed=st.integers(0, 2**32), clip=st.booleans())
def test_reverse_step_is_ddims_ode_towards_the_noise(process: DiffusionProcess, seed: int, clip: bool) -> None:
    point = Point.random(process, seed)
    predicted = point.predict(clip=clip)
    eps = eps_from_x0(process, point.x, point.t, predicted.pred_x0)
    onward = column(process.schedule.alpha_bar_next)
    table = reverse_ddim_table(process, thresholding="clip" if clip else "none")
    x_next, *_ = take_step(table.rows, point.x, point.output, None, point.noise)
    assert_near(x_next, onward.sqrt() * predicted.pred_x0 + (1 - onward).sqrt() * eps)


@PROPERTY
@given(process=processes, eta=st.floats(0, 1))
def test_last_step_lands_on_the_image_without_noise(process: DiffusionProcess, eta: float) -> None:
    for table in (ddpm_table(process), ddim_table(process, eta), dpmpp_2m_table(process), heun_table(process)):
        last = dict(zip(COLUMNS, table.rows[-1].tolist(), strict=True))
        assert (last["noise"], last["noise_std"]) == (0, 0)


def test_ddim_without_eta_draws_no_noise() -> None:
    table = ddim_table(DiffusionProcess(Schedule.named("cosine", 50)), 0.0)
    assert not table.rows[:, [COLUMNS.index("noise"), COLUMNS.index("noise_std")]].any()


def test_table_runs_from_noise_to_image() -> None:
    process = DiffusionProcess(Schedule.named("linear", 1000).respaced([0, 400, 999]))
    assert ddpm_table(process).timesteps.tolist() == [999, 400, 0]
    assert ddim_table(process, 0.0).timesteps.tolist() == [999, 400, 0]
    assert reverse_ddim_table(process).timesteps.tolist() == [0, 400, 999]


@dataclass(frozen=True)
class Pick:
    """A row of some table."""

    schedule: str
    sampler: str
    eta: float
    num_steps: int
    place: float
    thresholding: Thresholding
    guided: bool

    @property
    def row(self) -> Tensor:
        kept = sampling_timesteps(1000, self.sampler, self.num_steps)
        table = build(self.sampler, DiffusionProcess(Schedule.named(self.schedule, 1000).respaced(kept)), self)
        return table.rows[int(self.place * len(table))].float()


def build(sampler: str, process: DiffusionProcess, pick: Pick | None = None) -> SamplerTable:
    thresholding = "clip" if pick is None else pick.thresholding
    match sampler:
        case "ddim":
            return ddim_table(process, 0.0 if pick is None else pick.eta, thresholding=thresholding)
        case "ddpm":
            return ddpm_table(process, thresholding=thresholding)
        case "dpmpp_2m":
            return dpmpp_2m_table(process, thresholding=thresholding)
        case _:
            return heun_table(process, thresholding=thresholding)


SAMPLERS = ["ddim", "ddpm", "dpmpp_2m", "heun"]

picks = st.builds(
    Pick,
    schedule=st.sampled_from(["linear", "cosine"]),
    sampler=st.sampled_from(SAMPLERS),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    num_steps=st.integers(1, 30),
    place=st.floats(0, 0.999),
    thresholding=st.sampled_from(THRESHOLDINGS),
    guided=st.booleans(),
)


@pytest.mark.slow
@PROPERTY
@given(
    batch=st.lists(picks, min_size=1, max_size=9),
    size=st.sampled_from([(3, 8, 8), (3, 5, 7), (1, 1, 1)]),
    seed=st.integers(0, 2**32),
)
def test_step_of_a_mixed_batch_equals_its_single_steps_bit_for_bit(
    batch: list[Pick], size: tuple[int, int, int], seed: int
) -> None:
    rows = torch.stack([pick.row for pick in batch])
    generator = torch.Generator().manual_seed(seed)
    x, out, v, gradient, noise, memory = torch.randn(6, len(batch), *size, generator=generator)
    guided = torch.tensor([pick.guided for pick in batch])
    gradient = gradient * column(guided)
    output = torch.cat([out, v], dim=1)
    together = take_step(rows, x, output, gradient if guided.any() else None, noise, memory)
    for i, pick in enumerate(batch):
        one = slice(i, i + 1)
        guidance = gradient[one] if pick.guided else None
        alone = take_step(rows[one], x[one], output[one], guidance, noise[one], memory[one])
        for of_batch, of_one in zip(together, alone, strict=True):
            assert torch.equal(of_batch[one], of_one)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mean_type", [MeanType.EPSILON, MeanType.START_X])
def test_scaled_eps_is_that_of_a_network_which_predicts_as_much_more(sampler: str, mean_type: MeanType) -> None:
    schedule = Schedule.named("cosine", 1000)
    process = DiffusionProcess(schedule.respaced([0, 300, 700, 900]), mean_type, VarianceType.FIXED_SMALL)
    table = build(sampler, process)
    scaled = scale_eps(table, schedule, 1.02)
    x, predicted = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in range(len(table)):
        t = (process.schedule.timestep_map == table.original[row]).nonzero()[0]
        eps = eps_from_x0(process, x, t, process.to_x0(predicted, x, t))
        more = 1.02 * eps if mean_type is MeanType.EPSILON else process.x0_from_eps(x, t, 1.02 * eps)
        of_more = take_step(table.rows[row : row + 1], x, more, None, torch.zeros_like(x))
        of_scaled = take_step(scaled.rows[row : row + 1], x, predicted, None, torch.zeros_like(x))
        torch.testing.assert_close(of_scaled.x_prev, of_more.x_prev, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_of_one_changes_no_bit(sampler: str) -> None:
    schedule = Schedule.named("cosine", 1000)
    table = build(sampler, DiffusionProcess(schedule.respaced([0, 300, 999])))
    assert torch.equal(scale_eps(table, schedule, 1.0).rows, table.rows)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_perfect_network_leads_back_to_the_image(sampler: str) -> None:
    """With the true eps of one fixed image, every sampler ends on it exactly, whatever noise it draws."""
    process = DiffusionProcess(Schedule.named("linear", 1000).respaced(sampling_timesteps(1000, sampler, 20)))
    table = build(sampler, process)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1
    x = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
    memory = torch.zeros_like(x)
    for row in range(len(table)):
        t = (process.schedule.timestep_map == table.timesteps[row]).nonzero()[0]
        output = torch.cat([eps_from_x0(process, x, t, x0), torch.zeros_like(x)], dim=1)
        noise = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
        x, _, memory = take_step(table.rows[row : row + 1], x, output, None, noise, memory)
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-9)
