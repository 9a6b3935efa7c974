import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks.blocks import ResBlock
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.convolution import Conv1d, Conv2d
from models.networks.linear import FIXED_ROWS, Linear
from models.networks.unet import SuperResUNet, UNet, build_unet
from tests.models.samples import BASE, CLASSIFIER, UPSAMPLER, seeded

PROPERTY = settings(max_examples=30)


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_untrained_unet_predicts_zeros() -> None:
    predicted = build_unet(BASE)(images(2, 8), torch.tensor([0, 999]), torch.tensor([0, 3]))
    assert predicted.shape == (2, 6, 8, 8)
    assert not predicted.any()


@torch.no_grad()
def test_class_label_and_timestep_change_the_prediction() -> None:
    unet, x = seeded(build_unet(BASE), 0), images(1, 8).expand(3, -1, -1, -1)
    first, other_label, other_time = unet(x, torch.tensor([5, 5, 900]), torch.tensor([0, 1, 0]))
    assert not torch.allclose(first, other_label)
    assert not torch.allclose(first, other_time)


@torch.no_grad()
def test_upsampler_sees_the_low_resolution_image() -> None:
    unet = seeded(build_unet(UPSAMPLER), 0)
    assert isinstance(unet, SuperResUNet)
    x, t = images(1, 16), torch.tensor([5])
    first, other = unet(x, t, low_res=images(1, 8, 1)), unet(x, t, low_res=images(1, 8, 2))
    assert first.shape == (1, 6, 16, 16)
    assert not torch.allclose(first, other)


SWITCHES = [
    {"use_scale_shift_norm": False},
    {"resblock_updown": False},
    {"resblock_updown": False, "conv_resample": False},
    {"use_new_attention_order": True},
    {"rescale_residual": True},
    {"num_head_channels": -1, "num_heads": 4},
    {"num_head_channels": -1, "num_heads": 1, "num_heads_upsample": 2},
    {"attention_resolutions": ()},
    {"attention_resolutions": (1, 2)},
    {"num_res_blocks": 2, "channel_mult": (1, 2)},
    {"out_channels": 3},
    {"num_classes": None},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@torch.no_grad()
def test_every_switch_changes_what_the_network_computes(changes: dict[str, object]) -> None:
    config = dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]  # each value has its field's type
    x, t = images(2, 8), torch.tensor([5, 600])
    labels = torch.tensor([0, 1])
    plain = seeded(build_unet(BASE), 0)(x, t, labels)
    changed = seeded(build_unet(config), 0)(x, t, None if config.num_classes is None else labels)
    assert changed.shape == (2, config.out_channels, 8, 8)
    assert bool(changed.isfinite().all())
    assert changed.shape != plain.shape or not torch.allclose(changed, plain)


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
@torch.no_grad()
def test_classifier_of_every_pool_gives_a_logit_a_class(pool: str) -> None:
    config: ClassifierConfig = dataclasses.replace(CLASSIFIER, pool=pool)  # type: ignore[arg-type]  # a PoolName
    logits = seeded(NoisyClassifier(config), 0)(images(2, 8), torch.tensor([5, 600]))
    assert logits.shape == (2, 3)
    assert not torch.allclose(logits[0], logits[1])


@torch.no_grad()
def test_rescaled_residual_divides_the_sum_by_the_root_of_two() -> None:
    plain, rescaled = ResBlock(32, 64, 0.0), ResBlock(32, 64, 0.0, rescale=True)
    rescaled.load_state_dict(seeded(plain, 0).state_dict())
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 64)
    torch.testing.assert_close(rescaled.eval()(x, emb), plain(x, emb) / math.sqrt(2))


def state_keys(config: UNetConfig) -> set[str]:
    return set(build_unet(config).state_dict())


def test_keys_have_the_official_names() -> None:
    keys = state_keys(dataclasses.replace(BASE, resblock_updown=False))
    assert {
        "time_embed.0.weight",
        "time_embed.2.bias",
        "label_emb.weight",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.1.0.in_layers.2.bias",
        "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.2.0.op.weight",
        "input_blocks.3.1.qkv.weight",
        "middle_block.0.in_layers.0.weight",
        "middle_block.1.norm.weight",
        "middle_block.1.proj_out.bias",
        "middle_block.2.out_layers.0.bias",
        "output_blocks.0.0.skip_connection.weight",
        "output_blocks.1.2.conv.weight",
        "out.0.weight",
        "out.2.bias",
    } <= keys


def test_switches_that_only_reorder_or_scale_leave_the_keys_alone() -> None:
    assert state_keys(dataclasses.replace(BASE, use_new_attention_order=True)) == state_keys(BASE)
    assert state_keys(dataclasses.replace(BASE, rescale_residual=True)) == state_keys(BASE)


def test_label_rows_come_with_class_conditioning_alone() -> None:
    assert state_keys(BASE) - state_keys(dataclasses.replace(BASE, num_classes=None)) == {"label_emb.weight"}


@PROPERTY
@given(rows=st.integers(1, FIXED_ROWS), width=st.sampled_from([(32, 128), (128, 64), (7, 5)]))
@torch.no_grad()
def test_rows_of_a_linear_layer_are_equal_bit_for_bit_whatever_the_batch(rows: int, width: tuple[int, int]) -> None:
    layer = seeded(Linear(*width), 0)
    x = torch.randn(FIXED_ROWS, width[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x[:rows]), layer(x)[:rows])


@torch.no_grad()
def test_linear_layer_computes_what_torchs_does() -> None:
    layer, x = seeded(Linear(16, 8), 0), torch.randn(3, 16)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


def test_training_linear_layer_is_not_padded() -> None:
    layer, x = Linear(16, 8).train(), torch.randn(3, 16, requires_grad=True)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_conditional_network_asks_for_labels() -> None:
    network = build_unet(BASE)
    assert isinstance(network, UNet)
    with pytest.raises(AssertionError):
        network(images(1, 8), torch.tensor([0]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("size", [4, 8, 32])
@torch.no_grad()
def test_convolution_of_few_images_equals_that_among_others_bit_for_bit(size: int) -> None:
    x = torch.randn(16, 32, size, size, generator=torch.Generator().manual_seed(0))
    for stride, kernel in ((1, 3), (2, 3), (1, 1)):
        conv = seeded(Conv2d(32, 48, kernel, stride=stride, padding=kernel // 2), 0).eval()
        assert all(torch.equal(conv(x[:rows]), conv(x)[:rows]) for rows in (1, 2, 4))
    pointwise, flat = seeded(Conv1d(32, 96, 1), 0).eval(), x.flatten(2)
    assert all(torch.equal(pointwise(flat[:rows]), pointwise(flat)[:rows]) for rows in (1, 2, 4))
