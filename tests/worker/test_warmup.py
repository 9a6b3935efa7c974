"""The measurement of steps at a worker's start: which shapes have memory, and how many lanes are fastest."""

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
from worker import warmup
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


class Clock:
    """Time that only passes of networks take: a busy machine's stalls must not decide which lanes are chosen."""

    def __init__(self) -> None:
        self.now = 0.0

    def timer_on(self, device: torch.device) -> "ClockTimer":
        return ClockTimer(self)


class ClockTimer:
    def __init__(self, clock: Clock) -> None:
        self._clock, self._started = clock, clock.now

    def end(self) -> None:
        self._ended = self._clock.now

    def wait(self) -> float:
        return self._ended - self._started


@pytest.fixture
def one_lane_rows_if(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], int]:
    """Returns the most rows that have one lane, of two, if a pass of so many rows takes so many seconds."""

    def chosen(seconds: Callable[[int], float]) -> int:
        key, stages = f"tiny/{BASE}", build_stages([load_stack(write_stack(tmp_path / "tiny"))], MAX_ROWS, threads=2)
        clock = Clock()

        def compute(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            clock.now += seconds(len(inputs[0]))

        for module in stages[key].networks.modules.values():
            module.register_forward_pre_hook(compute)
        monkeypatch.setattr(warmup, "timer_on", clock.timer_on)  # as on a machine of exactly these times
        measure_steps(Engine(stages, MAX_ROWS), [key])
        return stages[key].networks.one_lane_rows

    return chosen


def test_one_lane_computes_the_row_counts_whose_time_is_mostly_launching(
    one_lane_rows_if: Callable[[Callable[[int], float]], int],
) -> None:
    """Two lanes would wait for Python's lock, which each operation of a network takes."""
    assert one_lane_rows_if(lambda rows: 9.0 + rows) == MAX_ROWS


def test_all_lanes_compute_the_row_counts_whose_time_grows_with_them(
    one_lane_rows_if: Callable[[Callable[[int], float]], int],
) -> None:
    assert one_lane_rows_if(lambda rows: 1.0 + rows) == 2
