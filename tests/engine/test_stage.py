from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from engine.errors import UnknownOfferError
from engine.numerics import fingerprint
from engine.trajectory import StagePlan, Trajectory
from tests.engine.bench import MAX_ROWS, Bench, finish
from vocabulary.sampling import SAMPLERS

BASE = "tiny/base"


def test_warm_up_keeps_the_largest_shape_of_network_and_classifier(bench: Bench) -> None:
    for key, stage in bench.stages.items():
        assert stage.row_shapes["network"][-1] == MAX_ROWS
        assert bool(stage.row_shapes["guide"]) == (key == BASE)
    assert bench.stages[BASE].row_shapes["guide"][-1] == MAX_ROWS


def test_unknown_sampler_is_refused_by_name(bench: Bench) -> None:
    with pytest.raises(UnknownOfferError, match="unknown sampler 'euler'; there are ddim, ddpm, dpmpp_2m, heun"):
        bench.stages[BASE].table(StagePlan(BASE, "euler", 4))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_table_is_built_once(bench: Bench, sampler: str) -> None:
    stage = bench.stages[BASE]
    assert stage.table(StagePlan(BASE, sampler, 4)) is stage.table(StagePlan(BASE, sampler, 4))


def test_batch_that_raises_advances_no_image(bench: Bench) -> None:
    stage = bench.stages[BASE]
    table = stage.table(StagePlan(BASE, "ddim", 2))
    good, bad = (Trajectory(bench.image(label=0), table, stage.starting_noise(1, index)) for index in range(2))
    before = good.x.clone()
    bad.request = bench.image(label=99)
    with pytest.raises(IndexError):
        stage.step([good, bad])
    assert (good.row, good.pred_x0) == (0, None)
    assert torch.equal(good.x, before)


class ClonesFail(TorchFunctionMode):
    """Raises OutOfMemoryError at every clone of a tensor after `most` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:
            if self.left == 0:
                raise torch.OutOfMemoryError
            self.left -= 1
        return func(*args, **(kwargs or {}))


def test_step_that_runs_out_of_memory_in_its_last_copies_moves_nobody(bench: Bench) -> None:
    stage = bench.stages[BASE]
    table = stage.table(StagePlan(BASE, "ddim", 2))
    batch = [Trajectory(bench.image(label=0), table, stage.starting_noise(1, index)) for index in range(3)]
    before = [each.x for each in batch]
    with pytest.raises(torch.OutOfMemoryError), ClonesFail(most=8):
        stage.step(batch)
    assert [each.row for each in batch] == [0, 0, 0]
    assert all(each.x is x and each.pred_x0 is None for each, x in zip(batch, before, strict=True))


def test_image_that_waits_keeps_nothing_of_its_neighbours_in_memory(bench: Bench) -> None:
    stage = bench.stages[BASE]
    table = stage.table(StagePlan(BASE, "dpmpp_2m", 4))
    batch = [Trajectory(bench.image(label=0), table, stage.starting_noise(1, index)) for index in range(3)]
    first, *_ = stage.step(batch)
    for each in (first.x, first.pred_x0, first.memory):
        assert each is not None
        assert each.untyped_storage().nbytes() == each.nbytes


@pytest.mark.parametrize("rows", range(1, MAX_ROWS + 1))
def test_rehearsal_of_any_row_count_leaves_nothing(bench: Bench, rows: int) -> None:
    request = bench.image(sampler="ddpm", scale=2.0)
    engine = bench.engine()
    engine.add(request)
    for stage in bench.stages.values():
        stage.rehearse(rows)
    (finished,) = finish(engine)
    assert torch.equal(finished.pixels, bench.alone(request))


def test_same_request_gives_the_same_pixels_from_networks_loaded_again(bench: Bench, own_bench: Bench) -> None:
    request = bench.image(sampler="ddpm", steps=3, upsample=2, scale=2.0)
    assert torch.equal(bench.alone(request), own_bench.alone(request))


def test_fingerprint_is_that_of_the_numerics_alone(bench: Bench, own_bench: Bench) -> None:
    same = fingerprint(bench.stages, "fp32")
    assert fingerprint(own_bench.stages, "fp32") == same
    assert fingerprint(bench.stages, "bf16") != same
    own_bench.stages[BASE].row_shapes["network"] = (MAX_ROWS + 1,)
    assert fingerprint(own_bench.stages, "fp32") != same


def test_fingerprint_covers_variables_that_direct_kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    same = fingerprint(bench.stages, "fp32")
    for name in ("ONEDNN_VERBOSE", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert fingerprint(bench.stages, "fp32") == same, "these direct no kernel"
    for name in ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.setenv(name, "1")
        assert fingerprint(bench.stages, "fp32") != same
        monkeypatch.delenv(name)


def test_fingerprint_tells_which_stage_runs_in_which_mode(bench: Bench, own_bench: Bench) -> None:
    """Norms of one stage may be fused where those of another disagreed with the eager form."""
    fingerprints = set()
    for stage in own_bench.stages.values():
        networks = stage.networks
        networks.is_wide = True
        fingerprints.add(fingerprint(own_bench.stages, "fp32"))
        networks.is_wide = False
    assert len(fingerprints | {fingerprint(bench.stages, "fp32")}) == 3
