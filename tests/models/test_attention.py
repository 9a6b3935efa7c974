import pytest
import torch

from models.attention import AttentionBlock, attend, count_heads


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


def test_heads_follow_from_their_channels_where_those_are_given() -> None:
    assert count_heads(64, 4, -1) == 4
    assert count_heads(64, 4, 16) == 4
    assert count_heads(128, 4, 16) == 8


def test_head_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="num_head_channels=24 does not divide the 64 channels"):
        count_heads(64, 1, 24)


def test_fresh_block_is_the_identity() -> None:
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AttentionBlock(32, 2)(x), x)
