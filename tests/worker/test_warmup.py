"""The measurement of steps at a worker's start, on a device whose memory does not suffice for all row shapes."""

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
