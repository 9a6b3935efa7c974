"""The memory estimate of a step against measured and published sizes."""

from pathlib import Path

import pytest
import torch

from engine.threads import torch_threads
from models.checkpoints.presets import PRESETS
from models.memory import (
    STATES_KEPT,
    Need,
    NetworkConfig,
    PeakMeter,
    bytes_of_compiled,
    bytes_per_row,
    free_bytes,
    row_bytes,
    shortage,
    state_bytes,
    surely_fits,
)
from models.stack_plan import official_stacks, read_stack
from tests.engine.bench import Bench
from tests.models.samples import BASE as BASE_CONFIG
from tests.models.samples import CLASSIFIER, UPSAMPLER

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
def test_quick_bound_is_above_the_estimate(name: str) -> None:
    config = PRESETS[name].config
    assert not surely_fits(config, 3, 3 * row_bytes(config))


@pytest.mark.slow
def test_shortage_says_what_would_fit(stack_folder: Path) -> None:
    plans = [read_stack(stack_folder)]
    need = Need.of(plans)
    assert shortage(plans, 8, 2**40) is None
    assert shortage(plans, 8, need.weights + 8 * need.row) is None
    some, one, none = (shortage(plans, 8, free) for free in (need.weights + 5 * need.row, need.weights - 1, 10))
    assert some is not None
    assert (some.needed_bytes, some.rows_that_fit, some.fitting) == (need.weights + 8 * need.row, 5, {})
    assert one is not None
    assert (one.rows_that_fit, list(one.fitting)) == (0, ["tiny-uncond"])
    assert none is not None
    assert (none.rows_that_fit, none.fitting) == (0, {})


@pytest.mark.slow
def test_step_takes_no_more_than_is_estimated_and_not_much_less(own_bench: Bench) -> None:
    """Measures tensors, not scratch space inside kernels. Torch's norms, of several threads, take more."""
    rows = 4
    for key, stage in own_bench.stages.items():
        peaks = []
        for threads in (1, 2):
            with torch_threads(threads):
                stage.rehearse(rows)
                with PeakMeter() as meter:
                    stage.rehearse(rows)
            peaks.append(meter.peak)
        configs: list[NetworkConfig] = [stage.networks.network.config, *([CLASSIFIER] if stage.networks.guide else [])]
        estimated = rows * (max(map(row_bytes, configs)) + state_bytes(stage.networks.network.config))
        assert 0.5 * estimated < max(peaks) <= estimated, key


def test_image_between_two_steps_takes_what_is_estimated(bench: Bench) -> None:
    engine = bench.engine(1)  # in a larger batch its tensors are parts of the batch's
    engine.add(bench.image(sampler="dpmpp_2m", steps=2, upsample=2))
    for config in (BASE_CONFIG, BASE_CONFIG, UPSAMPLER):
        report = engine.step()
        assert report is not None
        (image,) = report.moved
        kept = (each for each in (image.x, image.memory, image.pred_x0, image.low_res) if each is not None)
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
        assert sum(storages.values()) <= state_bytes(config)


@pytest.mark.slow
def test_compiled_networks_need_the_memory_of_their_largest_batch_once_more() -> None:
    configs: list[NetworkConfig] = [BASE_CONFIG, UPSAMPLER, CLASSIFIER]
    assert bytes_of_compiled(configs, 8) == 8 * bytes_per_row(configs)


@pytest.mark.slow
def test_cascade_needs_its_three_networks_and_the_largest_row(tmp_path: Path) -> None:
    plan = next(plan for plan in official_stacks(tmp_path) if "adm-64-256" in plan.pipelines)
    need = Need.of([plan])
    counts = {file.path.stem: PRESETS[file.path.stem].param_count for file in plan.files}
    assert need.weights == 4 * (sum(counts.values()) + counts["64x64_classifier"])  # the gradient has a second copy
    upsampler, classifier = (PRESETS[name].config for name in ("64_256_upsampler", "64x64_classifier"))
    assert need.row == row_bytes(upsampler) + row_bytes(classifier) + STATES_KEPT * state_bytes(upsampler)
    assert Need.of([plan.only(["adm-64"])]).weights < need.weights
