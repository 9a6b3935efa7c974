"""Inspection infers exactly the facts that keys and shapes determine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints.inspection import NotAdmError, inspect_shapes
from models.checkpoints.network_file import blank_network
from models.checkpoints.presets import PRESETS
from models.networks.config import ClassifierConfig, PoolName, UNetConfig
from tests.models.samples import BASE, CLASSIFIER, UPSAMPLER

TABLES = Path("tests/golden/presets")
FFHQ = UNetConfig(
    image_size=256,
    model_channels=128,
    num_res_blocks=1,
    attention_resolutions=(16,),
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_heads=4,
    num_head_channels=64,
    use_scale_shift_norm=True,
    resblock_updown=True,
)


def shapes_of(config: UNetConfig | ClassifierConfig) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in blank_network(config).state_dict().items()}


@pytest.mark.parametrize("name", PRESETS)
def test_official_checkpoint_is_recognized_by_its_keys(name: str) -> None:
    table = json.loads((TABLES / f"{name}.keys.json").read_text())
    found = inspect_shapes({key: tuple(shape) for key, shape, _ in table})
    assert name in found.presets
    assert replace(found.config, dropout=0.0) == replace(PRESETS[name].config, dropout=0.0)


def test_open_flags_of_a_diffusion_network_are_named() -> None:
    found = inspect_shapes(shapes_of(PRESETS["64x64_diffusion"].config))
    assert [each.flag for each in found.open] == [
        "use_new_attention_order",
        "num_heads / num_head_channels",
        "image_size",
        "noise_schedule",
        "diffusion_steps",
        "rescale_timesteps",
        "predict_xstart",
    ]


def test_attention_pool_gives_the_image_size() -> None:
    found = inspect_shapes(shapes_of(PRESETS["256x256_classifier"].config))
    assert "image_size" not in {each.flag for each in found.open}


def test_checkpoint_of_another_dataset_is_recognized_without_a_preset() -> None:
    found = inspect_shapes(shapes_of(FFHQ))
    assert found.presets == ()
    assert found.config == FFHQ


def test_fewer_classes_and_other_widths_are_recognized() -> None:
    config = replace(PRESETS["64x64_diffusion"].config, num_classes=37, model_channels=64)  # type: ignore[arg-type]
    found = inspect_shapes(shapes_of(config))
    assert isinstance(found.config, UNetConfig)
    assert (found.config.num_classes, found.config.model_channels) == (37, 64)


@pytest.mark.parametrize("config", [BASE, UPSAMPLER, CLASSIFIER])
def test_small_networks_are_recognized(config: UNetConfig | ClassifierConfig) -> None:
    assert shapes_of(inspect_shapes(shapes_of(config)).config) == shapes_of(config)


@st.composite
def configs(draw: st.DrawFn) -> UNetConfig | ClassifierConfig:
    levels = draw(st.integers(1, 4))
    mult = draw(st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=levels, max_size=levels))
    shared: dict[str, Any] = {
        "image_size": 32,
        "model_channels": 64,
        "num_res_blocks": draw(st.integers(1, 3)),
        "attention_resolutions": tuple(draw(st.sets(st.sampled_from([1, 2, 4, 8])))),
        "channel_mult": tuple(mult),
        "num_head_channels": 32,
        "use_scale_shift_norm": draw(st.booleans()),
        "resblock_updown": draw(st.booleans()),
        "conv_resample": draw(st.booleans()),
    }
    if draw(st.booleans()):
        pool: PoolName = draw(st.sampled_from(["adaptive", "attention", "spatial", "spatial_v2"]))
        return ClassifierConfig(**shared, out_channels=draw(st.integers(2, 9)), pool=pool)
    super_res = draw(st.booleans())
    return UNetConfig(
        **shared,
        out_channels=draw(st.sampled_from([3, 6])),
        num_classes=draw(st.none() | st.integers(1, 20)),
        in_channels=6 if super_res else 3,
        super_res=super_res,
    )


@pytest.mark.slow
@settings(max_examples=25)
@given(config=configs())
def test_inferred_network_has_the_keys_and_shapes_it_was_inferred_from(config: UNetConfig | ClassifierConfig) -> None:
    assert shapes_of(inspect_shapes(shapes_of(config)).config) == shapes_of(config)


@pytest.mark.parametrize("keys", [{}, {"weight": (3, 3)}, {"input_blocks.0.0.weight": (32, 3, 3, 3)}])
def test_other_networks_are_refused(keys: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(NotAdmError):
        inspect_shapes(keys)
