"""Group norm of maps that lie by channels: as defined, and the same for an image however few there are."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.networks.norm import GroupNorm32

ROWS, CHANNELS = 4, 64


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def a_norm() -> GroupNorm32:
    norm = GroupNorm32(CHANNELS).requires_grad_(False)
    norm.weight.copy_(drawn(CHANNELS))
    norm.bias.copy_(drawn(CHANNELS) + 1)
    return norm


def by_channels(x: Tensor) -> Tensor:
    """The same values, each position's channels side by side."""
    return x.flatten(2).mT.contiguous().mT.reshape(x.shape) if x.ndim == 3 else x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (15,)], ids=str)
def test_norm_of_a_map_by_channels_is_the_norm(
    shape: tuple[int, ...], modulated: bool, silu: bool, dtype: torch.dtype
) -> None:
    x, norm = (3 * drawn(ROWS, CHANNELS, *shape) + 2).to(dtype), a_norm()
    moves = [drawn(2, ROWS, CHANNELS, *(1 for _ in shape))[i] for i in range(2)] if modulated else []
    laid = by_channels(x)
    assert not laid.is_contiguous()
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    if modulated:
        expected = expected * (1 + moves[0].double()) + moves[1].double()
    expected = F.silu(expected) if silu else expected
    result = norm(laid, *moves, silu=silu)
    assert result.dtype == dtype
    assert result.stride() == laid.stride()
    rtol = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
def test_gradient_through_a_map_by_channels_is_the_norms(modulated: bool, silu: bool) -> None:
    x, upstream, norm = 3 * drawn(ROWS, CHANNELS, 4, 4) + 2, drawn(1, ROWS, CHANNELS, 4, 4)[0], a_norm()
    moves = list(drawn(2, ROWS, CHANNELS, 1, 1)) if modulated else []
    ours = by_channels(x).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(ours, *moves, silu=silu), ours, upstream)
    theirs = x.double().requires_grad_()
    h = F.group_norm(theirs, 32, norm.weight.double(), norm.bias.double(), norm.eps)
    h = h * (1 + moves[0].double()) + moves[1].double() if modulated else h
    (expected,) = torch.autograd.grad(F.silu(h) if silu else h, theirs, upstream.double())
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_norm_that_trains_gives_its_weights_their_gradients() -> None:
    norm = a_norm().requires_grad_(True)
    x = by_channels(drawn(ROWS, CHANNELS, 4, 4)).requires_grad_()  # without, torch's own backward would crash
    norm(x).square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.abs().min() > 0


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_norm_of_an_image_does_not_depend_on_how_many_share_the_threads(rows: int, two_threads: None) -> None:
    x, norm = by_channels(drawn(ROWS, CHANNELS, 32, 32)), a_norm()
    assert torch.equal(norm(x[-rows:].clone(), silu=True), norm(x, silu=True)[-rows:])
