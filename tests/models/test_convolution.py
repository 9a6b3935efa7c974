"""Convolutions with packed weights agree with the plain ones within rounding, for any number of rows."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from models.networks.convolution import Conv1d, Conv2d, can_pack, pack_weights
from models.networks.unet import UNet, build_unet
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


def test_rows_of_a_packed_network_do_not_depend_on_how_many_there_are(plain: UNet, one_thread: None) -> None:
    packed, _ = packed_copy(plain)
    all_rows = UNet.forward(packed, *inputs(packed, ROWS))
    for rows in (2, 4):
        assert torch.equal(UNet.forward(packed, *inputs(packed, rows)), all_rows[:rows])


def test_weights_are_replaced_and_packed_once(plain: UNet) -> None:
    packed, run = packed_copy(plain)
    layers = [each for each in packed.modules() if isinstance(each, Conv2d | Conv1d)]
    assert all(each.weight.is_mkldnn for each in layers)
    assert sum(each.numel() for each in packed.parameters()) == sum(each.numel() for each in plain.parameters())
    before = [each.weight for each in layers]
    pack_weights(packed, 1, run)
    assert all(one is each.weight for one, each in zip(before, layers, strict=True))


LAYERS: dict[str, tuple[Conv2d | Conv1d, tuple[int, ...]]] = {
    "3x3": (Conv2d(32, 48, 3, padding=1), (8, 8)),
    "1x1": (Conv2d(32, 48, 1), (8, 8)),
    "stride 2": (Conv2d(32, 48, 3, stride=2, padding=1), (8, 8)),
    "stride 2 of an odd map": (Conv2d(32, 48, 3, stride=2, padding=1), (9, 7)),
    "three channels": (Conv2d(3, 32, 3, padding=1), (8, 8)),
    "line": (Conv1d(32, 96, 1), (16,)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_by_the_image_is_torchs_and_does_not_depend_on_the_rows(
    name: str, packed: bool, one_thread: None
) -> None:
    original, shape = LAYERS[name]
    layer = copy.deepcopy(original).requires_grad_(False)
    x = torch.randn(16, layer.in_channels, *shape, generator=torch.Generator().manual_seed(0))

    def torchs(x: Tensor) -> Tensor:
        convolve: Callable[..., Tensor] = torch.conv2d if isinstance(layer, Conv2d) else torch.conv1d
        return convolve(x, original.weight, original.bias, layer.stride, layer.padding)

    upstream = torch.randn(torchs(x).shape, generator=torch.Generator().manual_seed(1))

    def gradient(rows: int, forward: Callable[[Tensor], Tensor]) -> Tensor:
        inputs = x[:rows].clone().requires_grad_()
        return torch.autograd.grad(forward(inputs), inputs, upstream[:rows])[0]

    if packed:
        pack_weights(layer, 16, lambda: layer(x), with_gradient=True)
    all_rows = gradient(16, layer)
    torch.testing.assert_close(all_rows, gradient(16, torchs), rtol=1e-4, atol=1e-5)
    for rows in (2, 8):
        assert torch.equal(gradient(rows, layer), all_rows[:rows])


def test_only_what_onednn_computes_here_is_packed() -> None:
    assert not can_pack(torch.device("cuda", 0), torch.float32)
    assert can_pack(CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert can_pack(CPU, torch.float16) == torch.ops.mkldnn._is_mkldnn_fp16_supported()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_convolution_computes_in_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    layer = Conv2d(32, 32, 3, padding=1).requires_grad_(False).to(dtype)
    assert layer(torch.zeros(2, 32, 8, 8)).dtype == dtype


@pytest.mark.parametrize("setting", [{"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}], ids=str)
def test_what_the_kernels_do_not_take_is_refused_and_not_ignored(setting: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(setting))}'"):
        Conv2d(4, 4, 3, padding=1, **setting)
