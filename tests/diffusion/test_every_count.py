"""Every step count from 1 to T on a Gaussian, whose score is exact: no count is worse than its neighbours."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusion.process import DiffusionProcess, VarianceType
from diffusion.schedule import Schedule
from diffusion.tables import COLUMNS, SamplerTable, take_step
from engine.sampler_tables import build_table
from engine.trajectory import StagePlan
from vocabulary.sampling import Direction, TimeGrid

T = 250  # so that every count is tried in little time; the grids of 1000 are compared by themselves in test_grids
MEAN, STD = 0.3, 0.5  # of the clean image, one pixel
NOISE = COLUMNS.index("noise")


@dataclass(frozen=True)
class Run:
    """Runs of many step counts at once: mean and std [M] of the images of each, from standard noise."""

    mean: Tensor
    std: Tensor

    @property
    def error(self) -> Tensor:
        return (self.mean - MEAN).abs() + (self.std - STD).abs()


def tables(
    schedule: str,
    sampler: str,
    eta: float,
    counts: range,
    time_grid: TimeGrid | None = None,
    direction: Direction = Direction.DECODE,
) -> list[SamplerTable]:
    process = DiffusionProcess(Schedule.named(schedule, T), variance_type=VarianceType.FIXED_SMALL)
    return [
        build_table(process, StagePlan("", sampler, count, eta, time_grid, "none", direction=direction))
        for count in counts
    ]


def run(schedule: str, runs: list[SamplerTable], x: Tensor, bias: float) -> tuple[Tensor, Tensor]:
    """Run every table from two starts, x [2, M], with the eps of the exact score plus a bias.

    Returns the ends, [2, M], and the variance that drawn noise adds, [M]: a step is affine, so it scales the variance
    before it by the square of its slope.
    """
    alpha_bar = Schedule.named(schedule, T).alpha_bar
    memory, drawn = torch.zeros_like(x), torch.zeros(x.shape[1], dtype=torch.float64)
    # the longest first, so that the runs with a k-th step are a slice
    order = sorted(range(len(runs)), key=lambda place: -len(runs[place]))
    stacked = torch.zeros(max(map(len, runs)), len(runs), len(COLUMNS), dtype=torch.float64)
    places = torch.zeros(stacked.shape[:2], dtype=torch.int64)
    for column, place in enumerate(order):
        stacked[: len(runs[place]), column], places[: len(runs[place]), column] = runs[place].rows, runs[place].original
    x = x[:, order]
    lengths = torch.tensor([len(runs[place]) for place in order])
    for row, (rows, timesteps) in enumerate(zip(stacked, places, strict=True)):
        live = int((lengths > row).sum())
        level = alpha_bar[timesteps[:live]]
        eps = (1 - level).sqrt() * (x[:, :live] - level.sqrt() * MEAN) / (level * STD**2 + 1 - level) + bias
        both = [each.reshape(-1, 1, 1, 1) for each in (x[:, :live], eps, torch.zeros_like(eps), memory[:, :live])]
        x_t, output, noise, kept = both
        moved, _, kept = take_step(rows[:live].repeat(2, 1), x_t, output, None, noise, kept)
        before, after = x[1, :live] - x[0, :live], moved.reshape(2, live)[1] - moved.reshape(2, live)[0]
        drawn[:live] = (after / before) ** 2 * drawn[:live] + rows[:live, NOISE] ** 2
        x[:, :live], memory[:, :live] = moved.reshape(2, live), kept.reshape(2, live)
    back = torch.tensor(order).argsort()
    return x[:, back], drawn[back]


def sample(
    schedule: str, sampler: str, eta: float, counts: range, bias: float, time_grid: TimeGrid | None = None
) -> Run:
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None].repeat(1, len(counts))
    x, drawn = run(schedule, tables(schedule, sampler, eta, counts, time_grid), start, bias)
    return Run(x[0], ((x[1] - x[0]) ** 2 + drawn).sqrt())


def assert_every_count_is_as_good_as_its_neighbours(error: Tensor, most: float) -> None:
    """error [N - 1] of counts from 2 to N: none exceeds both of its neighbours by more than the factor `most`."""
    ratio = torch.minimum(error[1:-1] / error[2:], error[1:-1] / error[:-2])
    worst = int(ratio.argmax())
    assert ratio[worst] < most, f"{worst + 3} steps: {error[worst : worst + 3].tolist()}"


SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("dpmpp_2m", 0.0), ("heun", 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_error_falls_with_the_steps_at_every_count(schedule: str, sampler: str, eta: float) -> None:
    error = sample(schedule, sampler, eta, range(2, T + 1), bias=0.0).error
    assert_every_count_is_as_good_as_its_neighbours(error, 1.15)
    counts = torch.arange(32, T + 1)
    floor = 0.003  # of a schedule that neither begins at pure noise nor ends at the clean image
    assert bool((error[counts - 2] < 0.75 * error[counts // 2 - 2] + floor).all())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS[1:])
def test_no_count_amplifies_the_error_of_a_network(schedule: str, sampler: str, eta: float) -> None:
    """The network's eps is off by 0.04, as the demo's is. A run that draws no noise keeps the error of its first step.

    DDPM, which forgets it, is not tried, and neither are T steps, which cannot leave the last timestep out.
    """
    error = sample(schedule, sampler, eta, range(2, T), bias=0.04).error
    assert_every_count_is_as_good_as_its_neighbours(error, 2.5)
    assert float(error[14:].max()) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_error_of_encoding_and_decoding_falls_with_the_steps(schedule: str) -> None:
    counts = range(2, T - 2)
    x = torch.tensor([MEAN - STD, MEAN + STD], dtype=torch.float64)[:, None].repeat(1, len(counts))
    latent, _ = run(schedule, tables(schedule, "ddim", 0.0, counts, "even", Direction.ENCODE), x.clone(), bias=0.04)
    back, _ = run(schedule, tables(schedule, "ddim", 0.0, counts, "even"), latent, bias=0.04)
    error = (back - x).abs().sum(dim=0)
    assert_every_count_is_as_good_as_its_neighbours(error, 1.15)
    assert float(error[98]) < 0.5 * float(error[23])
    assert float(error[98:].max()) < 1.2 * float(error[98])
