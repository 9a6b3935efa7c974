"""The measurement of steps at a worker's start: which shapes have memory, and how many lanes are fastest."""

import threading
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


COMPUTING = 0.1  # seconds of a pass of a network that a test slows down, long beside everything else in a step


def slow_down(stage: Stage, compute: Callable[[], None]) -> None:
    for module in stage.networks.modules.values():
        module.register_forward_pre_hook(lambda module, inputs: compute())


@pytest.mark.slow
def test_network_and_guide_get_lanes_of_their_own_where_that_is_faster(tmp_path: Path) -> None:
    stages = build_stages([load_stack(write_stack(tmp_path / "tiny"))], MAX_ROWS, threads=2)
    stage = stages[f"tiny/{BASE}"]
    slow_down(stage, lambda: time.sleep(COMPUTING))
    measure_steps(Engine(stages, MAX_ROWS), [f"tiny/{BASE}"])
    assert stage.networks.lane_counts == dict.fromkeys(stage.row_shapes["network"], 2)


@pytest.mark.slow
def test_one_lane_computes_both_where_two_would_wait_for_each_other(tmp_path: Path) -> None:
    """As they do for Python's lock while they launch the operations of few rows."""
    stages = build_stages([load_stack(write_stack(tmp_path / "tiny"))], MAX_ROWS, threads=2)
    stage, lock = stages[f"tiny/{BASE}"], threading.Lock()

    def compute() -> None:
        if not lock.acquire(blocking=False):
            time.sleep(4 * COMPUTING)
            return
        time.sleep(COMPUTING)
        lock.release()

    slow_down(stage, compute)
    measure_steps(Engine(stages, MAX_ROWS), [f"tiny/{BASE}"])
    assert stage.networks.lane_counts == dict.fromkeys(stage.row_shapes["network"], 1)
