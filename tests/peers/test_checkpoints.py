"""Networks of random official flags: their weights load, and give what the official network gives."""

import random
from typing import Any

import pytest
import torch
from guided_diffusion import script_util as official
from torch import nn

from models.checkpoints.flags import (
    CLASSIFIER_DEFAULTS,
    DIFFUSION_DEFAULTS,
    UPSAMPLER_DEFAULTS,
    classifier_config,
    diffusion_config,
    upsampler_config,
)
from models.checkpoints.open_flags import Answers, resolve
from models.networks.classifier import NoisyClassifier
from models.networks.unet import build_unet

CASES = range(6)


def fill(network: nn.Module) -> None:
    """Weights that let every layer through; the official code starts with zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.05)


def draw_unet_flags(draw: random.Random) -> dict[str, Any]:
    by_channels = draw.random() < 0.4
    return {
        "num_channels": 32,
        "num_res_blocks": draw.randint(1, 2),
        "num_heads": 1 if by_channels else draw.choice([2, 4]),
        "num_head_channels": draw.choice([8, 16]) if by_channels else -1,
        "num_heads_upsample": draw.choice([-1, 1, 2, 8]),
        "attention_resolutions": draw.choice(["16,8", "16", "8"]),
        "class_cond": draw.random() < 0.5,
        "learn_sigma": draw.random() < 0.5,
        "use_scale_shift_norm": draw.random() < 0.5,
        "resblock_updown": draw.random() < 0.5,
    }


def compare(theirs: nn.Module, ours: nn.Module, x: torch.Tensor, *arguments: torch.Tensor | None) -> None:
    fill(theirs)
    ours.load_state_dict(theirs.state_dict())
    timesteps = torch.tensor([3.0, 700.0])
    kwargs = {name: value for name, value in zip(("y", "low_res"), arguments, strict=False) if value is not None}
    labels = {"class_labels" if name == "y" else name: value for name, value in kwargs.items()}
    with torch.no_grad():
        want, got = theirs.eval()(x, timesteps, **kwargs), ours.eval()(x, timesteps, **labels)
    assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def test_flags_and_their_defaults_are_the_official_ones() -> None:
    assert official.model_and_diffusion_defaults() == DIFFUSION_DEFAULTS
    assert official.sr_model_and_diffusion_defaults() == UPSAMPLER_DEFAULTS
    assert official.classifier_defaults() == CLASSIFIER_DEFAULTS


@pytest.mark.parametrize("case", CASES)
def test_diffusion_network_is_the_official_one(case: int, draw: random.Random) -> None:
    flags = draw_unet_flags(draw) | {"image_size": 32, "channel_mult": draw.choice(["1,2", "1,1,2"])}
    flags["use_new_attention_order"] = draw.random() < 0.5
    theirs, _ = official.create_model_and_diffusion(**DIFFUSION_DEFAULTS | flags)
    config = diffusion_config(flags)
    labels = torch.tensor([1, 999]) if flags["class_cond"] else None
    compare(theirs, build_unet(config), torch.randn(2, 3, 32, 32), labels)
    heads = ("num_head_channels",) if flags["num_head_channels"] > 0 else ("num_heads", "num_heads_upsample")
    answers = Answers(
        use_new_attention_order=flags["use_new_attention_order"],
        image_size=32,
        **{name: flags[name] for name in heads},
    )
    inferred = resolve(shapes_of(theirs), answers).config
    compare(theirs, build_unet(inferred), torch.randn(2, 3, 32, 32), labels)  # type: ignore[arg-type]  # it is a UNet's


@pytest.mark.parametrize("case", range(2))
def test_upsampler_is_the_official_one(case: int, draw: random.Random) -> None:
    flags = draw_unet_flags(draw) | {"large_size": 64, "small_size": 16, "num_res_blocks": 1}
    theirs, _ = official.sr_create_model_and_diffusion(**UPSAMPLER_DEFAULTS | flags)
    labels = torch.tensor([1, 999]) if flags["class_cond"] else None
    ours = build_unet(upsampler_config(flags))
    compare(theirs, ours, torch.randn(2, 3, 64, 64), labels, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("case", range(4))
def test_classifier_is_the_official_one(case: int, draw: random.Random) -> None:
    flags = {
        "image_size": 64,
        "classifier_width": 64,
        "classifier_depth": 1,
        "classifier_attention_resolutions": draw.choice(["32,16,8", "8"]),
        "classifier_use_scale_shift_norm": draw.random() < 0.5,
        "classifier_resblock_updown": draw.random() < 0.5,
        "classifier_pool": draw.choice(["adaptive", "attention", "spatial", "spatial_v2"]),
    }
    theirs = official.create_classifier(**CLASSIFIER_DEFAULTS | flags)
    compare(theirs, NoisyClassifier(classifier_config(flags)), torch.randn(2, 3, 64, 64))
