"""Row shapes in which a layer computes otherwise are found at start, also where rounding hides them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.pipeline import build_stages
from engine.shape_probes import trajectory_states
from engine.stage import Stage
from models.networks import convolution
from models.networks.norm import GroupNorm32
from models.stack import load_stack
from tests.engine.bench import Bench
from vocabulary.precisions import Precision

BASE = "tiny/base"
Convolve = Callable[..., Tensor]


def warm(folder: Path, precision: Precision) -> Stage:
    return build_stages([load_stack(folder)], 8, precision=precision, threads=1)[BASE]


def shuffled(convolve: Convolve, rows: int, dtype: torch.dtype | None = None) -> Convolve:
    """Adds up in another order in batches of so many rows: equal but for rounding."""

    def convolved(maps: Tensor, kernels: Tensor, *others: Any) -> Tensor:
        if len(maps) == rows and dtype in (None, maps.dtype) and not kernels.is_mkldnn:
            kernels, maps = kernels.flip(1), maps.flip(1)
        return convolve(maps, kernels, *others)

    return convolved


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_shapes_of_sound_kernels_are_kept(stack_folder: Path, precision: Precision) -> None:
    stage = warm(stack_folder, precision)
    assert stage.row_shapes["network"] == stage.row_shapes["guide"] == (1, 2, 4, 8)


@pytest.mark.slow
def test_a_shape_in_which_a_convolution_adds_up_in_another_order_is_dropped_in_half_precision(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a processor whose kernels add up in another order for four rows; this one has none
    monkeypatch.setattr(convolution, "can_pack", lambda *_: False)
    monkeypatch.setattr("engine.stage_networks.can_pack", lambda *_: False)
    monkeypatch.setattr(convolution, "onednn_computes", lambda dtype: True)
    convolve = convolution._convolve if torch.ops.mkldnn._is_mkldnn_bf16_supported() else by_torch
    monkeypatch.setattr(convolution, "_convolve", convolve)
    agreeing = warm(stack_folder, "bf16").row_shapes[
        "network"
    ]  # torch's own kernels add up one row differently on some CPUs
    assert 4 in agreeing
    monkeypatch.setattr(convolution, "_convolve", shuffled(convolve, 4))
    stage = warm(stack_folder, "bf16")
    assert stage.row_shapes["network"] == stage.row_shapes["guide"] == tuple(rows for rows in agreeing if rows != 4)


def by_torch(maps: Tensor, kernels: Tensor, bias: Tensor | None, padding: Any, stride: Any = 1) -> Tensor:
    return torch.conv2d(maps, kernels, bias, stride, padding)


@pytest.mark.slow
def test_a_shape_that_disagrees_in_float32_serves_in_no_precision(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a processor whose float32 kernels add up in another order for two rows
    monkeypatch.setattr(convolution, "_convolve", shuffled(convolution._convolve, 2, torch.float32))
    stage = warm(stack_folder, "bf16")
    assert stage.row_shapes["network"] == stage.row_shapes["guide"] == (1, 4, 8)


@pytest.mark.slow
def test_a_norm_that_errs_in_one_shape_is_found(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GroupNorm32.forward

    def wrong(self: GroupNorm32, x: Tensor, *modulation: Tensor, silu: bool = False) -> Tensor:
        return right(self, x, *modulation, silu=silu) * (1 + 2**-23 * (len(x) == 4))

    monkeypatch.setattr(GroupNorm32, "forward", wrong)  # a kernel with a fault at four rows; ours has none
    assert 4 not in warm(stack_folder, "fp32").row_shapes["network"]


def test_states_are_of_all_timesteps_seeds_and_classes(bench: Bench) -> None:
    states = trajectory_states(bench.stages[BASE], 8)
    assert len({each.timestep for each in states}) == 8
    assert len({each.request.seed for each in states}) == 8
    assert len({each.request.guidance_target for each in states}) == 3
    assert all(each.guided for each in states)
