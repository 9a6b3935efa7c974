"""Packed convolutions and compiled norms in compiled networks: what they declare to torch.compile is right."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from models.networks import native_norm, opaque
from models.networks.convolution import Conv2d, can_pack, pack_weights
from models.networks.norm import GroupNorm32
from models.networks.unet import build_unet
from tests.models.samples import BASE, seeded

ROWS, CHANNELS, SIZE = 2, 32, 6
pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="torch has no oneDNN on this processor"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    """A norm and two convolutions, one of which halves the map."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = GroupNorm32(CHANNELS)
        self.halve = Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1)
        self.mix = Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.halve(self.norm(x, silu=True)))
        return mixed


def maps(seed: int) -> Tensor:
    drawn = torch.randn(ROWS, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return drawn.to(memory_format=torch.channels_last)


def packed(seed: int) -> Block:
    block = Block(seed).requires_grad_(False)
    pack_weights(block, ROWS, lambda: block(maps(0)), with_gradient=True)
    return block


def numbers(block: Block) -> list[int | None]:
    return [each.packed.number for each in (block.halve, block.mix) if each.packed is not None]


def result_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    result = function(x)
    return result.detach(), torch.autograd.grad(result.square().sum(), x)[0]


def traced(block: Block) -> Callable[[Tensor], Tensor]:
    """Traced as for compiling, by a backend that generates no code."""
    return torch.compile(block, dynamic=False, fullgraph=True, backend="aot_eager")


def test_traced_networks_and_their_gradients_are_the_eager_ones() -> None:
    block, x = packed(1), maps(2)
    assert all(map(torch.equal, result_and_gradient(traced(block), x), result_and_gradient(block, x)))


def test_traced_code_uses_new_layers_that_reuse_the_numbers_of_freed_ones() -> None:
    """As when a worker unloads a pipeline and loads another one with the same networks."""
    block, x = packed(1), maps(2)
    first = numbers(block)
    result_and_gradient(traced(block), x)
    del block
    gc.collect()
    other = packed(3)
    assert numbers(other) == first
    assert all(map(torch.equal, result_and_gradient(traced(other), x), result_and_gradient(other, x)))


def test_two_networks_have_different_numbers() -> None:
    one, other = packed(1), packed(1)
    assert len({*numbers(one), *numbers(other)}) == 4


@pytest.mark.slow
def test_operations_keep_the_rules_of_torch() -> None:
    """Sizes, memory layouts and gradients are those that were declared to torch.compile."""
    block, x = packed(1), maps(2).requires_grad_()
    torch.library.opcheck(opaque.convolve, (x, numbers(block)[0]))
    if native_norm.supports(torch.float32):
        scale, shift = torch.randn(2, ROWS, CHANNELS)
        parameters = block.norm.weight, block.norm.bias, scale, shift
        torch.library.opcheck(native_norm.opaque_norm, (x, *parameters, block.norm.num_groups, block.norm.eps, True))


@pytest.mark.slow
def test_traced_network_trains_all_its_parameters() -> None:
    """The compiled norm has no gradient for weights and modulations there, so a network that trains does without it."""
    network = seeded(build_unet(BASE), 0).train().requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    x = torch.randn(ROWS, 3, BASE.image_size, BASE.image_size, generator=torch.Generator().manual_seed(4))

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = function(x, torch.tensor([3.0, 7.0]), torch.tensor([0, 1]))
        result.float().square().sum().backward()
        return [torch.zeros(0) if each.grad is None else each.grad for each in network.parameters()]

    compiled = torch.compile(network, dynamic=False, backend="aot_eager")
    found, expected = gradients(compiled), gradients(network)
    assert all(each.count_nonzero() for each in found)
    whole, other = (torch.cat([each.flatten() for each in some]) for some in (found, expected))
    assert torch.linalg.vector_norm(whole - other) < 0.1 * torch.linalg.vector_norm(other)
