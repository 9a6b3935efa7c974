"""The measurement of steps at a worker's start: which shapes have memory, and how many lanes are fastest."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion.tables import take_step
from engine import stage as stage_module
from engine.engine import Engine
from engine.pipeline import BASE, build_stages
from engine.stage import Stage
from models.stack import load_stack
from tests.models.samples import write_stack
from worker.warmup import measure_steps

MAX_ROWS = 4


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Stage]:
    stages: dict[str, Stage] = build_stages([load_stack(write_stack(tmp_path / "tiny"))], MAX_ROWS)
    return {key: stage for key, stage in stages.items() if stage.name == BASE}


def check_few_are_left(engine: Engine, stage: Stage) -> None:
    (key,) = engine.stages
    assert max(stage.row_shapes["network"]) == 2
    assert engine.costs.row_shapes(key) == stage.row_shapes["network"]
    assert tuple(engine.costs.measured_ms(key)) == stage.row_shapes["network"]


def test_shapes_whose_networks_run_out_of_memory_are_neither_measured_nor_kept(stages: dict[str, Stage]) -> None:
    def run_out(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError

    (stage,) = stages.values()
    engine = Engine(stages, MAX_ROWS)
    stage.networks.network.register_forward_pre_hook(run_out)
    measure_steps(engine)
    check_few_are_left(engine, stage)


def limit_steps(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    def step_of_few(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        if len(rows) > most:
            raise torch.OutOfMemoryError
        return take_step(rows, *others)

    monkeypatch.setattr(stage_module, "take_step", step_of_few)  # as by a small GPU; a CPU raises no such error


def test_shapes_that_run_out_of_memory_outside_the_networks_are_given_up(
    stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = stages.values()
    engine = Engine(stages, MAX_ROWS)
    limit_steps(monkeypatch, 2)
    measure_steps(engine)
    check_few_are_left(engine, stage)


def test_start_where_not_one_row_fits_fails(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    limit_steps(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        measure_steps(Engine(stages, MAX_ROWS))


PASS = 0.1  # seconds of a pass of a network that a test slows down, long beside everything else in a step


def lanes_of_slow_networks(folder: Path, seconds: Callable[[int], float]) -> dict[int, int]:
    """The lanes, of two, that are chosen if a pass of so many rows takes so many seconds."""
    key, stages = f"tiny/{BASE}", build_stages([load_stack(write_stack(folder / "tiny"))], MAX_ROWS, threads=2)
    for module in stages[key].networks.modules.values():
        module.register_forward_pre_hook(lambda _, inputs: time.sleep(seconds(len(inputs[0]))))
    measure_steps(Engine(stages, MAX_ROWS), [key])
    return stages[key].networks.lane_counts


@pytest.mark.slow
def test_one_lane_computes_the_row_counts_whose_time_is_mostly_launching(tmp_path: Path) -> None:
    """Two lanes would wait for Python's lock, which each operation of a network takes."""
    assert lanes_of_slow_networks(tmp_path, lambda rows: PASS) == {1: 1, 2: 1, 4: 1}


@pytest.mark.slow
def test_all_lanes_compute_the_row_counts_whose_time_grows_with_them(tmp_path: Path) -> None:
    assert lanes_of_slow_networks(tmp_path, lambda rows: PASS * (3 if rows == 4 else 1)) == {1: 1, 2: 1, 4: 2}
