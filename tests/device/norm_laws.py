"""Laws of the fused norm's kernels, run by test_norms.py: in Triton's interpreter on the CPU, or on a GPU.

A file of its own because Triton chooses between the two when kernels are imported, for the whole process.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.step_inputs import network_inputs
from models.networks import norm_kernels
from models.networks.blocks import ResBlock
from models.networks.channel_norm import NormCall
from models.networks.fusing import fuse_norms, fused_by
from models.networks.norm import GroupNorm32
from models.networks.norm_kernels import group_norm
from models.networks.unet import build_unet
from tests.models.samples import BASE, seeded

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# of the largest value: a few roundings; the interpreter cuts float32 off to bfloat16, where a GPU rounds
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
EPS = 1e-5


class Case:
    """Inputs of a norm, and what it makes of them in float64."""

    def __init__(
        self,
        shape: Sequence[int],
        groups: int,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,
        modulated: bool = True,
        silu: bool = True,
        mean: float = 0.0,
        std: float = 1.0,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.groups, self.silu, self.dtype = groups, silu, dtype
        n, channels = shape[:2]
        self.x = (mean + std * draw(*shape)).to(DEVICE, dtype)
        self.upstream = draw(*shape).to(DEVICE, dtype)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.x, self.upstream = (each.contiguous(memory_format=self.layout) for each in (self.x, self.upstream))
        self.weight, self.bias = 1 + 0.3 * draw(channels).to(DEVICE), draw(channels).to(DEVICE)
        halves = draw(n, 2 * channels, *[1] * (len(shape) - 2)).to(DEVICE, dtype).chunk(2, dim=1)
        self.modulation = halves if modulated else ()

    def run(self, eps: float = EPS) -> list[Tensor]:
        """The kernels' values and gradients to x, scale and shift."""
        leaves = [each.detach().requires_grad_() for each in (self.x, *self.modulation)]
        scale, shift = leaves[1:] or (None, None)
        y = group_norm(leaves[0], NormCall(self.groups, self.weight, self.bias, eps, scale, shift, self.silu))
        return [y.detach(), *torch.autograd.grad(y, leaves, self.upstream)]

    def expected(self) -> list[Tensor]:
        """The same in float64, by torch's own operations."""
        leaves = [each.detach().double().requires_grad_() for each in (self.x, *self.modulation)]
        y = F.group_norm(leaves[0], self.groups, self.weight.double(), self.bias.double(), EPS)
        if len(leaves) > 1:
            y = y * (1 + leaves[1]) + leaves[2]
        y = F.silu(y) if self.silu else y
        return [y.detach(), *torch.autograd.grad(y, leaves, self.upstream.double())]

    def check(self, results: Sequence[Tensor]) -> None:
        for result, expected in zip(results, self.expected()[: len(results)], strict=True):
            assert result.dtype == self.dtype
            assert (result - expected).abs().max() <= TOLERANCE[self.dtype] * expected.abs().max()


cases = st.builds(
    Case,
    shape=st.tuples(st.integers(1, 2), st.sampled_from([2, 6, 10]), st.integers(2, 5), st.integers(2, 5)),
    groups=st.sampled_from([1, 2]),
    dtype=st.sampled_from(list(TOLERANCE)),
    channels_last=st.booleans(),
    modulated=st.booleans(),
    silu=st.booleans(),
    mean=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)


# without shrinking, which takes minutes in the interpreter
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(case=cases)
def test_values_and_gradients_are_those_of_torch_in_float64(case: Case) -> None:
    results = case.run()
    case.check(results)
    for each in results[:2]:
        assert each.is_contiguous(memory_format=case.layout)


def test_a_wrong_norm_would_be_found() -> None:
    case = Case((1, 4, 3, 3), 2)
    with pytest.raises(AssertionError):
        case.check(case.run(eps=1e-3))


@pytest.mark.parametrize("shape", [(2, 8), (2, 6, 5)], ids=str)
def test_features_and_sequences_are_normed_too(shape: tuple[int, ...]) -> None:
    case = Case(shape, 2)
    case.check(case.run())


@pytest.mark.parametrize("channels_last", [False, True])
def test_group_of_many_blocks_is_as_exact_as_a_small_one(channels_last: bool) -> None:
    case = Case((1, 8, 128, 96), 1, channels_last=channels_last, modulated=False)
    assert case.x.numel() > 20 * norm_kernels.BLOCK
    case.check(case.run())


def test_values_far_from_zero_keep_their_distances() -> None:
    case = Case((1, 8, 64, 64), 1, modulated=False, silu=False, mean=50.0, std=0.01)
    case.check(case.run()[:1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_image_is_normed_the_same_bit_for_bit_whatever_is_beside_it(channels_last: bool) -> None:
    case = Case((3, 6, 5, 3), 2, channels_last=channels_last)
    together = case.run()
    x, upstream, modulation = case.x, case.upstream, case.modulation
    for row in (slice(0, 1), slice(1, 3)):
        case.x, case.upstream, case.modulation = x[row], upstream[row], tuple(each[row] for each in modulation)
        for alone, among in zip(case.run(), together, strict=True):
            assert torch.equal(alone, among[row])


def test_gradient_that_is_the_same_everywhere_may_come_expanded() -> None:
    case = Case((2, 4, 3, 3), 2)
    case.upstream = case.upstream[:, :, :1, :1].expand(2, 4, 3, 3)
    case.check(case.run())


def make_block() -> tuple[ResBlock, Tensor, Tensor]:
    block = seeded(ResBlock(32, 16, 0.0, out_channels=64, use_scale_shift_norm=True), 0).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    x, emb = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((1, 32, 4, 4), (1, 16)))
    return block, x, emb


def test_block_computes_the_same_with_fused_norms() -> None:
    block, x, emb = make_block()
    x.requires_grad_()
    expected = block(x, emb)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    assert fuse_norms(block, lambda: block(x, emb)) is None
    assert fused_by(block) == f"Triton {norm_kernels.VERSION}"
    result = block(x, emb)
    (gradient,) = torch.autograd.grad(result.square().sum(), x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_norm_that_disagrees_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x, emb = make_block()
    # a kernel with a fault; ours has none
    monkeypatch.setattr(norm_kernels, "group_norm", lambda *args, **kwargs: 1.05 * group_norm(*args, **kwargs))
    expected = block(x, emb)
    assert (reason := fuse_norms(block, lambda: block(x, emb))) is not None
    assert reason.startswith("DisagreementError: values of a norm of [1, 32, 4, 4], torch.float32, differ by ")
    assert fused_by(block) is None
    assert torch.equal(block(x, emb), expected)


def test_gradient_that_disagrees_leaves_the_norm_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x, emb = make_block()

    def halve_gradient(x: Tensor, *args: object, **kwargs: bool) -> Tensor:
        return group_norm(0.5 * x + (0.5 * x).detach(), *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(norm_kernels, "group_norm", halve_gradient)  # a fault that the real kernel does not have
    reason = fuse_norms(block, lambda: block(x.requires_grad_(), emb))
    assert reason is not None
    assert reason.startswith("DisagreementError: gradients of a norm of [1, 32, 4, 4], torch.float32, differ by ")


def test_norm_that_is_trained_stays_eager() -> None:
    norm, x = GroupNorm32(32).to(DEVICE), Case((2, 32, 4, 4), 32).x
    plain = norm(x, silu=True)
    norm.fused = True
    trained = norm(x, silu=True)
    assert torch.equal(trained, plain)
    assert torch.autograd.grad(trained.sum(), norm.weight)[0].any()


@torch.no_grad()
def test_stage_says_what_is_fused_and_computes_the_same() -> None:
    network = build_unet(replace(BASE, channel_mult=(1,), attention_resolutions=()))
    networks = StageNetworks("base", seeded(network, 0).to(DEVICE))
    stage = Stage(0, networks, DiffusionProcess(Schedule.named("linear", 1000)))
    # only of the network, because a step adds the sampler's arithmetic
    inputs = network_inputs([stage.rehearsal()], stage.device)
    expected = networks.predict(*inputs)
    before = networks.mode
    networks.fuse_norms(1, stage.rehearsal())
    assert networks.mode == f"{before}, norms of the network by Triton {norm_kernels.VERSION}"
    torch.testing.assert_close(networks.predict(*inputs), expected, rtol=1e-4, atol=1e-4)
