"""Convolutions with packed weights: the plain ones within rounding, indifferent to how many rows there are."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from models import convolution
from models.convolution import Conv1d, Conv2d, can_pack, pack_weights
from models.unet import UNet, build_unet
from tests.models.samples import BASE, UPSAMPLER, seeded

CPU = torch.device("cpu")
ROWS = 6

pytestmark = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this CPU's torch has no oneDNN")


def inputs(network: UNet, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    size = network.config.image_size
    x = torch.randn(ROWS, network.config.in_channels, size, size, generator=generator)[:rows]
    labels = (torch.arange(ROWS) % 3)[:rows]
    return (x, torch.arange(ROWS)[:rows] * 100.0, *([] if network.config.num_classes is None else [labels]))


def packed_copy(plain: UNet) -> tuple[UNet, Callable[[], object]]:
    packed = copy.deepcopy(plain)

    def run() -> None:
        UNet.forward(packed, *inputs(packed, 1))

    pack_weights(packed, ROWS, run)
    return packed, run


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[BASE, UPSAMPLER], ids=["base", "upsampler"])
def plain(request: pytest.FixtureRequest) -> UNet:
    return seeded(build_unet(request.param), 0).requires_grad_(False)


def test_packed_network_computes_what_the_plain_one_does(plain: UNet) -> None:
    packed, _ = packed_copy(plain)
    ours, theirs = (UNet.forward(each, *inputs(each, ROWS)) for each in (packed, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("small", [0, convolution.SMALL], ids=["one layout", "a layout for a lone row"])
def test_rows_of_a_packed_network_do_not_depend_on_how_many_there_are(
    plain: UNet, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "SMALL", small)
    packed, _ = packed_copy(plain)
    assert all((each.lone is None) == (small == 0) for each in packed.modules() if isinstance(each, Conv2d | Conv1d))
    all_rows = UNet.forward(packed, *inputs(packed, ROWS))
    for rows in (1, 2, 4):
        assert torch.equal(UNet.forward(packed, *inputs(packed, rows)), all_rows[:rows])


def test_weights_are_replaced_and_packed_once(plain: UNet) -> None:
    packed, run = packed_copy(plain)
    layers = [each for each in packed.modules() if isinstance(each, Conv2d | Conv1d)]
    assert all(each.weight.is_mkldnn for each in layers)
    assert sum(each.numel() for each in packed.parameters()) == sum(each.numel() for each in plain.parameters())
    before = [each.weight for each in layers]
    pack_weights(packed, 1, run)
    assert all(one is each.weight for one, each in zip(before, layers, strict=True))


def test_gradient_through_packed_weights_is_refused() -> None:
    layer = Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    x = torch.zeros(1, 32, 8, 8)
    pack_weights(layer, 1, lambda: layer(x))
    with torch.enable_grad(), pytest.raises(AssertionError, match="no gradient"):
        layer(x.requires_grad_())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Conv2d(32, 48, 3, padding=1), (8, 8)), (Conv2d(32, 48, 1), (8, 8)), (Conv1d(32, 96, 1), (16,))],
    ids=["3x3", "1x1", "line"],
)
def test_gradient_by_the_image_is_torchs_and_on_one_thread_does_not_depend_on_the_rows(
    layer: Conv2d | Conv1d, shape: tuple[int, ...], one_thread: None
) -> None:
    layer.requires_grad_(False)
    x = torch.randn(16, 32, *shape, generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(16, layer.out_channels, *shape, generator=torch.Generator().manual_seed(1))

    def gradient(rows: int, forward: Callable[[Tensor], Tensor]) -> Tensor:
        inputs = x[:rows].clone().requires_grad_()
        return torch.autograd.grad(forward(inputs), inputs, upstream[:rows])[0]

    def plain(x: Tensor) -> Tensor:
        convolve = torch.conv2d if isinstance(layer, Conv2d) else torch.conv1d
        return convolve(x, layer.weight, layer.bias, padding=layer.padding)

    all_rows = gradient(16, layer)
    torch.testing.assert_close(all_rows, gradient(16, plain), rtol=1e-4, atol=1e-5)
    for rows in (1, 2, 8):
        assert torch.equal(gradient(rows, layer), all_rows[:rows])


def test_only_what_was_measured_is_packed() -> None:
    assert not can_pack(torch.device("cuda", 0), torch.float32)
    assert not can_pack(CPU, torch.bfloat16)


@pytest.mark.parametrize("setting", [{"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}], ids=str)
def test_what_the_kernels_do_not_take_is_refused_and_not_ignored(setting: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(setting))}'"):
        Conv2d(4, 4, 3, padding=1, **setting)
