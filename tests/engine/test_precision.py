"""Half precision: near float32, and as indifferent to neighbours."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.stage import Stage
from models.networks.convolution import Conv2d
from models.networks.linear import Linear
from models.networks.precision import best_precision, hold_weights
from models.networks.unet import build_unet
from tests.engine.bench import Bench, finish
from tests.engine.conftest import make_bench
from tests.models.samples import BASE
from vocabulary.precisions import Precision

HALVES: list[Precision] = ["bf16", "fp16"]
DIGITS = {"bf16": 2**-8, "fp16": 2**-11}  # of their significands


@pytest.fixture(scope="module", params=HALVES)
def half(request: pytest.FixtureRequest, stack_folder: Path) -> Bench:
    return make_bench(stack_folder, request.param)


def test_a_prediction_is_off_by_no_more_than_its_digits_allow(bench: Bench, half: Bench) -> None:
    for key, stage in half.stages.items():  # by `predict`, because a step adds the sampler's arithmetic
        x, exact = stage.starting_noise(1, 0)[None], bench.stages[key]
        inputs = (x, torch.tensor([400.0]), torch.tensor([1]), torch.zeros(1, 3, 8, 8))
        with torch.no_grad():
            ours, theirs = stage.networks.predict(*inputs), exact.networks.predict(*inputs)
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        assert float((ours - theirs).norm() / theirs.norm()) < 16 * DIGITS[stage.networks.precision]


class WeightCasts(TorchDispatchMode):
    """Counts casts of the parameters of convolutions and linear layers."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        # each network and each guide, as the stage itself goes through them
        modules = (module for stage in stages for part in stage.networks.modules.values() for module in part.modules())
        layers = [each for each in modules if isinstance(each, nn.Conv1d | nn.Conv2d | nn.Linear)]
        self.watched = {each.data_ptr() for layer in layers for each in layer.parameters() if not each.is_mkldnn}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and not args[0].is_mkldnn:
            self.count += args[0].data_ptr() in self.watched
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", HALVES)
def test_no_step_casts_a_weight(precision: Precision, stack_folder: Path) -> None:
    half = make_bench(stack_folder, precision, threads=1)  # other threads' casts would not be seen
    with WeightCasts(half.stages.values()) as casts:
        engine = half.engine()
        engine.add(half.image(sampler="ddpm", scale=3.0, upsample=1))
        finish(engine)
    assert casts.count == 0


def test_convolutions_alone_are_half_precise() -> None:
    network = build_unet(BASE)
    hold_weights(network, "bf16")
    dtypes = {type(each): each.weight.dtype for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    assert dtypes == {Conv2d: torch.bfloat16, Linear: torch.float32}


def test_neighbours_change_nothing_in_half_precision(half: Bench) -> None:
    request = half.image("me", sampler="ddpm", steps=3, scale=3.0, upsample=1)
    alone, engine = half.alone(request), half.engine()
    for each in (half.image("other", label=2, steps=2, seed=3), request, half.image("third", scale=9.0, seed=4)):
        engine.add(each)
    (pixels,) = (each.pixels for each in finish(engine) if each.request == request)
    assert torch.equal(pixels, alone)


def test_a_gpu_is_given_bf16() -> None:
    assert best_precision(torch.device("cuda")) == "bf16"
