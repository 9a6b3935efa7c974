"""The rows of DPM-Solver++(2M) and Heun against their papers' formulas, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.process import DiffusionProcess, MeanType, VarianceType
from diffusion.schedule import Schedule
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import COLUMNS, SamplerTable, Step, ddim_table, take_step
from tests.diffusion.conversions import eps_from_x0
from vocabulary.sampling import num_evaluations

PROPERTY = settings(max_examples=100)
SHAPE = (1, 3, 2, 3)
SAME_AS_DDIM = [name for name in COLUMNS if name not in ("x_to_memory", "x0_to_memory")]

processes = st.builds(
    lambda betas, mean_type: DiffusionProcess(
        Schedule(torch.tensor(betas, dtype=torch.float64), torch.arange(len(betas)), len(betas)),
        mean_type,
        VarianceType.FIXED_SMALL,
    ),
    st.lists(st.floats(1e-3, 0.7), min_size=3, max_size=8),
    st.sampled_from(MeanType),
)


class Run:
    """A run of one image with a random network and a random gradient; keeps what every evaluation predicted."""

    def __init__(self, process: DiffusionProcess, table: SamplerTable, seed: int, scale: float) -> None:
        self.process, self.table, self.scale = process, table, scale
        self.generator = torch.Generator().manual_seed(seed)
        self.x, self.memory, self.row = self.draw(), torch.zeros(SHAPE, dtype=torch.float64), 0

    def draw(self) -> Tensor:
        return torch.randn(SHAPE, generator=self.generator, dtype=torch.float64)

    def step(self) -> tuple[int, Tensor, Step]:
        """Take a row; return its timestep, the guided prediction at it and the step, which has the new x."""
        t = self.table.timesteps[self.row : self.row + 1]
        out, gradient, noise = self.draw(), self.scale * self.draw(), self.draw()
        schedule = self.process.schedule
        pred_x0 = self.process.to_x0(out, self.x, t).clamp(-1, 1)
        eps = eps_from_x0(self.process, self.x, t, pred_x0) - (1 - schedule.alpha_bar[t]).sqrt() * gradient
        guided = self.process.x0_from_eps(self.x, t, eps)
        rows = self.table.rows[self.row : self.row + 1]
        taken = take_step(rows, self.x, out, gradient if self.scale else None, noise, self.memory)
        self.x, self.memory, self.row = taken.x_prev, taken.memory, self.row + 1
        return int(t), guided, taken


def half_log_snr(alpha_bar: Tensor) -> Tensor:
    return 0.5 * (alpha_bar / (1 - alpha_bar)).log()


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * (1 + want.abs().max().item()))


@PROPERTY
@given(process=processes, seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 20.0]))
def test_2m_step_is_algorithm_2_of_dpm_solver_plus_plus(process: DiffusionProcess, seed: int, scale: float) -> None:
    run = Run(process, dpmpp_2m_table(process), seed, scale)
    schedule = process.schedule
    alpha, std, place = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt(), half_log_snr(schedule.alpha_bar)
    before: Tensor | None = None
    for step in reversed(range(1, schedule.num_timesteps)):
        x = run.x
        t, guided, taken = run.step()
        assert t == step
        assert_near(taken.pred_x0, guided)
        length = place[step - 1] - place[step]
        used = guided
        if before is not None:
            ratio = (place[step] - place[step + 1]) / length  # r of the paper
            if 1 / (2 * ratio) <= 1:
                used = (1 + 1 / (2 * ratio)) * guided - 1 / (2 * ratio) * before
        assert_near(taken.x_prev, std[step - 1] / std[step] * x - alpha[step - 1] * torch.expm1(-length) * used)
        before = guided
    _, guided, taken = run.step()
    assert_near(taken.x_prev, guided)  # the last step lands on the prediction


@PROPERTY
@given(process=processes, seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 20.0]))
def test_heun_step_takes_the_mean_of_both_its_predictions(process: DiffusionProcess, seed: int, scale: float) -> None:
    run = Run(process, heun_table(process), seed, scale)
    schedule = process.schedule
    alpha, std, place = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt(), half_log_snr(schedule.alpha_bar)
    for step in reversed(range(1, schedule.num_timesteps)):

        def towards(predicted: Tensor, x: Tensor = run.x, step: int = step) -> Tensor:
            length = place[step - 1] - place[step]
            return std[step - 1] / std[step] * x - alpha[step - 1] * torch.expm1(-length) * predicted

        t, first, taken = run.step()
        assert t == step
        assert_near(taken.x_prev, towards(first))
        t, second, taken = run.step()
        assert t == step - 1
        assert_near(taken.x_prev, towards((first + second) / 2))
    t, guided, taken = run.step()
    assert t == 0
    assert_near(taken.x_prev, guided)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_first_and_last_2m_step_are_ddims(schedule: str) -> None:
    process = DiffusionProcess(Schedule.named(schedule, 50))
    solver, ddim = dpmpp_2m_table(process), ddim_table(process, 0.0)
    same = [COLUMNS.index(name) for name in SAME_AS_DDIM]
    for row in (0, -1):
        assert torch.equal(solver.rows[row, same], ddim.rows[row, same])


def test_short_2m_run_goes_to_the_last_timestep_in_first_order() -> None:
    """The step from timestep 111 to 0 is three times as long in log-SNR as the step before: too far to extrapolate."""
    kept = [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    table = dpmpp_2m_table(DiffusionProcess(Schedule.named("cosine", 1000).respaced(kept)))
    remembered = table.rows[:, COLUMNS.index("memory_to_prev")]
    assert (remembered != 0).tolist() == [False, *[True] * 7, False, False]


@pytest.mark.parametrize(("sampler", "build"), [("dpmpp_2m", dpmpp_2m_table), ("heun", heun_table)])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_row_is_an_evaluation_of_the_network(sampler: str, build: type[SamplerTable], num_steps: int) -> None:
    process = DiffusionProcess(Schedule.named("linear", 1000).respaced(range(0, 50 * num_steps, 50)))
    table = build(process)  # type: ignore[arg-type, call-arg]  # both are functions that return a table
    assert len(table) == num_evaluations(sampler, num_steps) == len(table.rows)
    assert table.rows.isfinite()[:, [name != "clamp" for name in COLUMNS]].all()


def test_heun_evaluates_where_a_step_starts_and_where_it_lands() -> None:
    process = DiffusionProcess(Schedule.named("linear", 1000).respaced([0, 400, 999]))
    assert heun_table(process).timesteps.tolist() == [999, 400, 400, 0, 0]
    scaled = heun_table(DiffusionProcess(Schedule.named("linear", 250), rescale_timesteps=True)).timesteps
    assert scaled[:3].tolist() == [996, 992, 992]
