from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from models.networks.attention import AttentionBlock, attend, count_heads


def qkv(channels: int) -> torch.Tensor:
    return torch.randn(2, 3 * channels, 5, generator=torch.Generator().manual_seed(0))


def test_the_two_orders_differ_for_several_heads() -> None:
    mixed = qkv(8)
    assert not torch.allclose(attend(mixed, 2, new_order=True), attend(mixed, 2, new_order=False))


def test_the_two_orders_agree_for_one_head() -> None:
    mixed = qkv(8)
    assert torch.equal(attend(mixed, 1, new_order=True), attend(mixed, 1, new_order=False))


def test_legacy_order_is_the_new_one_with_its_channels_regrouped() -> None:
    mixed = qkv(8)
    heads_inside = mixed.reshape(2, 2, 3, 4, 5).transpose(1, 2).reshape(2, 24, 5)
    torch.testing.assert_close(attend(heads_inside, 2, new_order=True), attend(mixed, 2, new_order=False))


def test_attention_is_the_softmax_of_scaled_products() -> None:
    mixed = qkv(4).double()
    q, k, v = mixed.chunk(3, dim=1)
    weights = (torch.einsum("nct,ncs->nts", q, k) / 4**0.5).softmax(dim=-1)
    torch.testing.assert_close(attend(mixed, 1, new_order=True), torch.einsum("nts,ncs->nct", weights, v))


class Attended(TorchFunctionMode):
    """Keeps what attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.given += args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_heads_are_laid_out_as_fused_attention_takes_them(
    dtype: torch.dtype, channels_last: bool, new_order: bool
) -> None:
    mixed = torch.empty(2, 3 * 16, 5, device="meta", dtype=dtype)
    mixed = mixed.mT.contiguous().mT if channels_last else mixed
    with Attended() as attended:
        out = attend(mixed, 2, new_order=new_order)
    assert out.shape == (2, 16, 5)
    assert [(each.shape, each.dtype, each.stride(-1)) for each in attended.given] == [((2, 2, 5, 8), dtype, 1)] * 3


@pytest.mark.parametrize("new_order", [False, True])
def test_order_in_memory_changes_nothing_of_attention(new_order: bool) -> None:
    mixed = qkv(8)
    channels_last = mixed.mT.contiguous().mT
    torch.testing.assert_close(attend(channels_last, 2, new_order=new_order), attend(mixed, 2, new_order=new_order))


def test_heads_follow_from_their_channels_where_those_are_given() -> None:
    assert count_heads(64, 4, -1) == 4
    assert count_heads(64, 4, 16) == 4
    assert count_heads(128, 4, 16) == 8


def test_head_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide an attention layer's 64 channels"):
        count_heads(64, 1, 24)


def test_fresh_block_is_the_identity() -> None:
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AttentionBlock(32, 2)(x), x)


@pytest.mark.parametrize("size", [(12,), (2, 6), (2, 3, 2)])
def test_block_attends_over_any_number_of_spatial_dimensions(size: tuple[int, ...]) -> None:
    block = AttentionBlock(32, num_heads=2)
    torch.nn.init.normal_(block.proj_out.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 32, 12, generator=torch.Generator().manual_seed(0))
    attended = block(x.reshape(2, 32, *size))
    assert attended.shape == (2, 32, *size)
    torch.testing.assert_close(attended.flatten(2), block(x.reshape(2, 32, 3, 4)).flatten(2))
