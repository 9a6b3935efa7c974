"""Answers determine the flags that keys and shapes leave open; each wrong answer is reported in one line."""

from dataclasses import replace
from typing import Any

import pytest

from models.checkpoints.open_flags import Answers, AnswersError, resolve
from models.checkpoints.presets import PRESETS
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig
from tests.models.test_inspection import FFHQ, shapes_of

ALL = Answers(
    use_new_attention_order=False,
    num_head_channels=64,
    image_size=256,
    noise_schedule="linear",
    diffusion_steps=1000,
    predict_xstart=False,
)
FEW_CLASSES = UNetConfig(
    image_size=32,
    model_channels=64,
    num_res_blocks=3,
    attention_resolutions=(2, 4),
    channel_mult=(1, 2, 2),
    num_heads=2,
    use_new_attention_order=True,
    out_channels=3,
    num_classes=7,
)
POOLED = replace(PRESETS["256x256_classifier"].config, out_channels=5)


def test_answers_and_shapes_make_the_configuration_of_a_network_of_faces() -> None:
    resolved = resolve(shapes_of(FFHQ), ALL)
    assert resolved.config == FFHQ
    assert resolved.process == DiffusionConfig("linear", 1000)
    assert resolved.missing() == []


def test_answers_settle_a_network_of_few_classes_and_fixed_variance() -> None:
    answers = Answers(
        use_new_attention_order=True,
        num_heads=2,
        num_heads_upsample=-1,
        image_size=32,
        noise_schedule="cosine",
        diffusion_steps=4000,
        rescale_timesteps=True,
        predict_xstart=True,
        sigma_small=True,
    )
    resolved = resolve(shapes_of(FEW_CLASSES), answers)
    assert resolved.config == FEW_CLASSES
    assert resolved.process == DiffusionConfig(
        "cosine", 4000, rescale_timesteps=True, predict_xstart=True, sigma_small=True
    )
    assert resolved.missing() == []


def test_without_answers_the_preset_with_the_same_keys_is_assumed() -> None:
    preset = PRESETS["64x64_diffusion"]
    resolved = resolve(shapes_of(preset.config), Answers())
    assert (resolved.config, resolved.process) == (preset.config, preset.process)
    assert not any(resolved.answers.settle(each) for each in resolved.found.open)


def test_every_open_flag_that_matters_has_to_be_given() -> None:
    lines = resolve(shapes_of(FEW_CLASSES), Answers(diffusion_steps=250)).missing()
    assert [line.partition(" is not in the file")[0] for line in lines] == [
        "use_new_attention_order",
        "num_heads / num_head_channels",
        "image_size",
        "noise_schedule",
        "rescale_timesteps",
        "predict_xstart",
        "sigma_small",
    ]
    at_1000 = resolve(shapes_of(FEW_CLASSES), Answers(diffusion_steps=1000)).missing()
    assert not any("rescale_timesteps" in line.partition(" ")[0] for line in at_1000)


def test_depth_of_an_ambiguous_classifier_is_an_answer() -> None:
    config = ClassifierConfig(
        image_size=16,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1, 1, 1),
        num_heads=4,
        num_head_channels=16,
        resblock_updown=True,
        pool="adaptive",
    )
    answers = Answers(num_res_blocks=1, num_head_channels=16, image_size=16, use_new_attention_order=False)
    resolved = resolve(shapes_of(config), answers)
    assert resolved.config == config
    assert resolved.missing() == []
    with pytest.raises(AnswersError, match="num_res_blocks 3 does not fit the keys, which allow 2 or 1 or 5"):
        resolve(shapes_of(config), replace(answers, num_res_blocks=3))


@pytest.mark.parametrize(
    ("config", "given", "line"),
    [
        (FFHQ, {"num_head_channels": 48}, "num_head_channels 48 does not divide the 512 channels of attention layers"),
        (FFHQ, {"num_heads": 0}, "num_heads 0 is below 1"),
        (FFHQ, {"image_size": 100}, "image_size 100 cannot be halved 5 times, which the 6 levels need"),
        (FFHQ, {"noise_schedule": "sine"}, "noise_schedule 'sine' is unknown; known are linear, cosine"),
        (FFHQ, {"diffusion_steps": 5}, "diffusion_steps is 5; it must be from 20 to 100000"),
        (FFHQ, {"sigma_small": True}, "sigma_small is not open: 6 output channels show that the variance is learned"),
        (POOLED, {"image_size": 64}, "image_size 64 contradicts the attention pool, whose weights are for 256 pixels"),
        (
            POOLED,
            {"num_heads": 4},
            "num_heads does not apply to an attention pool, whose heads follow from num_head_channels; give that",
        ),
        (
            POOLED,
            {"predict_xstart": True},
            "predict_xstart is not for a classifier, which uses the value of the network it guides",
        ),
        (FFHQ, {"num_res_blocks": 2}, "num_res_blocks 2 does not fit the keys, which allow 1"),
    ],
)
def test_wrong_answer_is_one_line(config: UNetConfig | ClassifierConfig, given: dict[str, Any], line: str) -> None:
    with pytest.raises(AnswersError) as refused:
        resolve(shapes_of(config), Answers(**given))
    assert refused.value.lines == [line]


def test_all_wrong_answers_are_reported_at_once() -> None:
    with pytest.raises(AnswersError) as refused:
        resolve(shapes_of(FFHQ), Answers(num_heads=3, num_head_channels=64, image_size=10))
    assert [line.split()[0] for line in refused.value.lines] == ["num_heads", "num_heads", "image_size"]


def test_heads_of_the_decoder_are_open_where_num_heads_makes_them() -> None:
    shapes = shapes_of(FEW_CLASSES)
    by_number = resolve(shapes, Answers(num_heads=4))
    by_channels = resolve(shapes, Answers(num_head_channels=16))
    assert "num_heads_upsample" in [each.flag for each in by_number.open]
    assert "num_heads_upsample" not in [each.flag for each in by_channels.open]
    assert by_number.value("num_heads_upsample") == "as num_heads"
    assert any(line.startswith("num_heads_upsample is not in the file") for line in by_number.missing())
    resolved = resolve(shapes, Answers(num_heads=4, num_heads_upsample=2))
    assert isinstance(resolved.config, UNetConfig)
    assert (resolved.config.num_heads, resolved.config.num_heads_upsample) == (4, 2)
    assert not any("num_heads_upsample" in line for line in resolved.missing())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"num_head_channels": 16, "num_heads_upsample": 2}, "applies only to a diffusion network with num_heads"),
        ({"num_heads": 4, "num_heads_upsample": 0}, "num_heads_upsample 0 is below 1"),
        ({"num_heads": 4, "num_heads_upsample": 5}, "num_heads_upsample 5 does not divide the"),
    ],
)
def test_heads_of_the_decoder_that_cannot_be_are_refused(heads: dict[str, Any], message: str) -> None:
    with pytest.raises(AnswersError, match=message):
        resolve(shapes_of(FEW_CLASSES), Answers(**heads))


def test_heads_given_again_replace_those_before() -> None:
    before = Answers(num_heads=4, num_heads_upsample=2, image_size=64)
    assert Answers(num_head_channels=16).over(before) == Answers(num_head_channels=16, image_size=64)
    assert Answers(num_heads=2).over(before) == Answers(num_heads=2, image_size=64)
