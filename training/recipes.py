"""How the demo stack is trained: the networks, schedules and figures behind `adm train`'s defaults."""

from dataclasses import dataclass

from diffusion.process import Process
from diffusion.schedule import Schedule
from models.config import ClassifierConfig, UNetConfig
from models.judge import JudgeConfig

NUM_TIMESTEPS = 1000
LABEL_DROPOUT = 0.15


@dataclass(frozen=True)
class Recipe:
    """Figures of a run; `images` is how many renders its set holds, `image_size` their edge in pixels."""

    batch_size: int
    learning_rate: float
    steps: int
    images: int
    image_size: int
    weight_decay: float = 0.0
    ema_rate: float = 0.999


RECIPES = {
    "diffusion": Recipe(batch_size=16, learning_rate=1e-3, steps=20_000, images=30_000, image_size=32),
    "classifier": Recipe(
        batch_size=64, learning_rate=1e-3, steps=6_000, images=30_000, image_size=32, weight_decay=0.05
    ),
    "upsampler": Recipe(batch_size=12, learning_rate=1e-3, steps=6_000, images=12_000, image_size=64),
    "judge": Recipe(batch_size=64, learning_rate=2e-3, steps=3_000, images=30_000, image_size=32, weight_decay=0.01),
}


def base_network(num_classes: int) -> UNetConfig:
    """The 32x32 base; num_classes counts the extra "no class" row."""
    return UNetConfig(
        image_size=32,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(4,),
        channel_mult=(1, 2, 3),
        num_head_channels=32,
        use_scale_shift_norm=True,
        resblock_updown=True,
        num_classes=num_classes,
    )


def classifier_network(num_classes: int) -> ClassifierConfig:
    """The noisy classifier at 32x32."""
    return ClassifierConfig(
        image_size=32,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(4,),
        channel_mult=(1, 2, 3),
        num_head_channels=32,
        use_scale_shift_norm=True,
        resblock_updown=True,
        out_channels=num_classes,
        pool="attention",
    )


def upsampler_network() -> UNetConfig:
    """The 32 to 64 upsampler: no attention, for local detail is all it adds."""
    return UNetConfig(
        image_size=64,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(),
        channel_mult=(1, 1, 2),
        num_head_channels=32,
        use_scale_shift_norm=True,
        resblock_updown=True,
        in_channels=6,
        super_res=True,
    )


def judge_network(num_classes: int) -> JudgeConfig:
    return JudgeConfig(image_size=32, num_classes=num_classes)


def process(schedule_name: str) -> Process:
    """Learned range over the named schedule: cosine for base and classifier, linear for the upsampler."""
    return Process(Schedule.named(schedule_name, NUM_TIMESTEPS))
