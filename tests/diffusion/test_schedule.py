import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.process import DiffusionProcess, MeanType, VarianceType
from diffusion.schedule import Schedule, named_betas, sampling_timesteps, space_timesteps
from diffusion.tables import COLUMNS, SamplerTable, ddim_table, ddpm_table

PROPERTY = settings(max_examples=50)
T = 1000


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_any_step_count_has_a_grid_of_as_many_timesteps(sampler: str) -> None:
    for num_steps in range(1, T + 1):
        grid = sampling_timesteps(T, sampler, num_steps)
        assert len(grid) == num_steps
        assert grid == sorted(set(grid))
        assert 0 <= grid[0] <= grid[-1] < T


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_one_step_is_the_last_timestep_alone(sampler: str) -> None:
    assert sampling_timesteps(T, sampler, 1) == [T - 1]


def test_ddim_takes_an_integer_stride_where_there_is_one() -> None:
    assert sampling_timesteps(T, "ddim", 25) == list(range(0, T, 40))
    assert sampling_timesteps(T, "ddpm", 25) != list(range(0, T, 40))


def test_section_grid_reaches_both_ends() -> None:
    grids = [sampling_timesteps(T, "ddpm", num_steps) for num_steps in range(2, T + 1, 37)]
    assert all((grid[0], grid[-1]) == (0, T - 1) for grid in grids)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 25, 250, 333, 997, 998, 999, 1000])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_table_of_any_step_count_is_finite(sampler: str, schedule: str, num_steps: int) -> None:
    kept = Schedule.named(schedule, T).respaced(sampling_timesteps(T, sampler, num_steps))
    for variance_type in VarianceType:
        for mean_type in MeanType:
            table = build(sampler, DiffusionProcess(kept, mean_type, variance_type))
            assert table.rows.shape == (num_steps, len(COLUMNS))
            assert bool(table.rows.isfinite().all())


def build(sampler: str, process: DiffusionProcess) -> SamplerTable:
    return ddim_table(process, 1.0) if sampler == "ddim" else ddpm_table(process)


@PROPERTY
@given(
    name=st.sampled_from(["linear", "cosine"]),
    kept=st.sets(st.integers(0, T - 1), min_size=1, max_size=30),
)
def test_respaced_process_visits_the_same_noise_levels(name: str, kept: set[int]) -> None:
    schedule = Schedule.named(name, T)
    respaced = schedule.respaced(sorted(kept))
    torch.testing.assert_close(respaced.alpha_bar, schedule.alpha_bar[sorted(kept)], rtol=1e-10, atol=1e-15)
    assert respaced.timestep_map.tolist() == sorted(kept)


def test_respacing_twice_keeps_original_timesteps() -> None:
    twice = Schedule.named("linear", T).respaced(range(0, T, 10)).respaced([3, 7])
    assert twice.timestep_map.tolist() == [30, 70]
    assert twice.network_timesteps(rescale=True).tolist() == [30.0, 70.0]


def test_rescaled_timesteps_are_thousandths_of_the_original_range() -> None:
    schedule = Schedule.named("cosine", 4000).respaced([0, 1000, 3999])
    assert schedule.network_timesteps(rescale=False).tolist() == [0, 1000, 3999]
    assert schedule.network_timesteps(rescale=True).tolist() == [0.0, 250.0, 999.75]


@pytest.mark.parametrize("kept", [[], ()])
def test_process_of_no_timestep_is_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one timestep"):
        Schedule.named("linear", T).respaced(kept)


def test_unknown_schedule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown noise schedule 'sqrt'"):
        named_betas("sqrt", T)


def test_linear_schedule_too_short_for_its_betas_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        named_betas("linear", 19)


@pytest.mark.parametrize("sections", ["ddim400", [T + 1], "500,501"])
def test_spacing_that_does_not_exist_is_refused(sections: str | list[int]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        space_timesteps(T, sections)
