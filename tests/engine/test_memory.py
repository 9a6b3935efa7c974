"""The memory reckoned for a step, against what is known of it."""

from pathlib import Path

import pytest
import torch

from engine.memory import Need, PeakMeter, free_bytes, row_bytes, shortage, surely_fits
from models.plan import official_stacks, read_stack
from models.presets import PRESETS

MIB = 2**20


def test_meter_counts_what_is_alive_together() -> None:
    with PeakMeter() as meter:
        for _ in range(3):
            kept = torch.empty(MIB, device="meta")  # 4 MiB
            view = kept[10:].reshape(2, -1)[:, :5]
            del kept, view
        both = [torch.empty(MIB, device="meta") for _ in range(2)]
    assert meter.peak == 8 * MIB
    assert len(both) == 2


def test_free_memory_of_this_machine_is_known() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert free > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["64x64_classifier", "64x64_diffusion", "512x512_classifier", "64_256_upsampler"])
def test_quick_bound_is_above_the_reckoning(name: str) -> None:
    config = PRESETS[name].config
    assert not surely_fits(config, 3, 3 * row_bytes(config))


@pytest.mark.slow
def test_shortage_says_what_would_fit(stack_folder: Path) -> None:
    plans = [read_stack(stack_folder)]
    need = Need.of(plans)
    assert shortage(plans, 8, 2**40) is None
    assert shortage(plans, 8, need.weights + 8 * need.row) is None
    assert "ADM_MAX_ROWS=5 would fit" in str(shortage(plans, 8, need.weights + 5 * need.row))
    assert "tiny-uncond with ADM_MAX_ROWS=" in str(shortage(plans, 8, need.weights - 1))
    assert str(shortage(plans, 8, 10)).endswith("none of them fits alone")


@pytest.mark.slow
def test_cascade_needs_its_three_networks_and_the_largest_row(tmp_path: Path) -> None:
    plan = next(plan for plan in official_stacks(tmp_path) if "adm-64-256" in plan.pipelines)
    need = Need.of([plan])
    assert need.weights == 4 * sum(PRESETS[file.path.stem].param_count for file in plan.files)
    assert need.row == row_bytes(PRESETS["64_256_upsampler"].config)
    assert Need.of([plan.only(["adm-64"])]).weights < need.weights
