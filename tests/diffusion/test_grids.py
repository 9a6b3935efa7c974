from itertools import pairwise

import pytest
import torch

from diffusion.grids import grid_timesteps
from diffusion.schedule import Schedule, sampling_timesteps, space_timesteps
from vocabulary.sampling import TIME_GRIDS

T = 1000
SCHEDULES = {name: Schedule.named(name, T) for name in ("linear", "cosine")}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("time_grid", TIME_GRIDS)
def test_any_step_count_has_a_grid_of_as_many_timesteps(schedule: str, time_grid: str) -> None:
    for num_steps in [*range(1, 60), 100, 250, 333, 500, 777, 998, 999, 1000]:
        kept = grid_timesteps(SCHEDULES[schedule], time_grid, "dpmpp_2m", num_steps)
        assert len(kept) == len(set(kept)) == num_steps
        assert kept == sorted(kept)
        assert 0 <= kept[0] <= kept[-1] < T


@pytest.mark.parametrize("time_grid", TIME_GRIDS)
def test_one_step_is_the_last_timestep_alone(time_grid: str) -> None:
    assert grid_timesteps(SCHEDULES["linear"], time_grid, "ddim", 1) == [T - 1]


@pytest.mark.parametrize("time_grid", TIME_GRIDS)
@pytest.mark.parametrize("num_steps", [0, T + 1])
def test_more_steps_than_timesteps_are_refused_by_number(time_grid: str, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"1000 timesteps has no grid of {num_steps}"):
        grid_timesteps(SCHEDULES["linear"], time_grid, "ddim", num_steps)


def test_unknown_grid_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown time grid 'log'; there are official, even, uniform, logsnr, karras"):
        grid_timesteps(SCHEDULES["linear"], "log", "ddim", 5)


def test_official_grid_is_the_published_one() -> None:
    for sampler in ("ddim", "ddpm"):
        assert grid_timesteps(SCHEDULES["linear"], "official", sampler, 25) == sampling_timesteps(T, sampler, 25)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_official_grid_of_the_solvers_is_ddims_and_never_begins_at_the_end(sampler: str) -> None:
    for num_steps in (2, 5, 10, 25, 50, 250):
        kept = grid_timesteps(SCHEDULES["linear"], "official", sampler, num_steps)
        assert kept == sampling_timesteps(T, "ddim", num_steps)
    # ddim63 does not divide the timesteps evenly: it would end at 992
    assert grid_timesteps(SCHEDULES["linear"], "official", sampler, 63)[-1] == 984


@pytest.mark.parametrize("num_steps", [60, 64, 75, 80, 96, 120, 128, 150, 300])
def test_ddim_without_a_published_grid_has_an_even_one_that_ends_as_published_ones_do(num_steps: int) -> None:
    """Not the section grid, which begins at timestep 999, where a network cannot recognise an image."""
    kept = grid_timesteps(SCHEDULES["cosine"], None, "ddim", num_steps)
    assert kept == grid_timesteps(SCHEDULES["cosine"], "official", "ddim", num_steps)
    assert (kept[0], kept[-1]) == (0, T - -(-T // num_steps))
    assert max(lengths(kept)) - min(lengths(kept)) == 1


def lengths(kept: list[int]) -> list[int]:
    return [after - before for before, after in pairwise(kept)]


@pytest.mark.parametrize("num_steps", [38, 112, 334])
def test_ddims_own_grid_is_even_where_the_published_one_begins_at_the_last_timestep(num_steps: int) -> None:
    schedule = SCHEDULES["cosine"]
    assert grid_timesteps(schedule, "official", "ddim", num_steps) == space_timesteps(T, f"ddim{num_steps}")
    assert grid_timesteps(schedule, "official", "ddim", num_steps)[-1] == T - 1
    assert grid_timesteps(schedule, None, "ddim", num_steps) == grid_timesteps(schedule, "even", "ddim", num_steps)


def test_ddim_has_the_published_grid_at_every_other_count_that_has_one() -> None:
    published = [count for count in range(2, T) if len(range(0, T, -(-T // count))) == count]
    assert len(published) == 61
    for count in published:
        if count not in (38, 112, 334):
            assert grid_timesteps(SCHEDULES["linear"], None, "ddim", count) == space_timesteps(T, f"ddim{count}")


@pytest.mark.parametrize("time_grid", ["even", "uniform", "logsnr", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [100, 150, 300, 500, 990])
def test_no_grid_begins_nearer_to_the_end_than_a_hundredth(schedule: str, time_grid: str, num_steps: int) -> None:
    """At the end of the cosine schedule several places round to one timestep; they move downwards."""
    assert grid_timesteps(SCHEDULES[schedule], time_grid, "dpmpp_2m", num_steps)[-1] == 990


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_solvers_of_second_order_have_the_karras_grid_of_their_own(sampler: str) -> None:
    schedule = SCHEDULES["linear"]
    assert grid_timesteps(schedule, None, sampler, 25) == grid_timesteps(schedule, "karras", sampler, 25)


def test_uniform_steps_have_one_length_down_to_the_clean_image() -> None:
    assert grid_timesteps(SCHEDULES["cosine"], "uniform", "ddim", 5) == [159, 319, 480, 640, 800]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("time_grid", "power"), [("logsnr", None), ("karras", 1 / 7)])
def test_grid_is_even_in_its_measure_as_far_as_timesteps_allow(
    schedule: str, time_grid: str, power: float | None
) -> None:
    sigma = SCHEDULES[schedule].sigma
    measure = sigma.log() if power is None else sigma**power
    kept = grid_timesteps(SCHEDULES[schedule], time_grid, "dpmpp_2m", 12)
    assert kept[0] == 0
    assert kept[-1] == 1000 - 84  # a twelfth below the end
    exact = torch.linspace(measure[0].item(), measure[kept[-1]].item(), 12, dtype=torch.float64)
    around = measure[[min(each + 1, T - 1) for each in kept]] - measure[[max(each - 1, 0) for each in kept]]
    assert ((measure[kept] - exact).abs() <= around).all()


@pytest.mark.parametrize("num_steps", [2, 5, 10, 25, 50])
def test_every_grid_begins_where_ddims_does(num_steps: int) -> None:
    last = sampling_timesteps(T, "ddim", num_steps)[-1]
    for time_grid in TIME_GRIDS:
        assert grid_timesteps(SCHEDULES["cosine"], time_grid, "dpmpp_2m", num_steps)[-1] == last
