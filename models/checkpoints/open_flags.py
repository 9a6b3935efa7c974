"""The flags of a checkpoint that its keys and shapes do not show, as given by its trainer; imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from models.checkpoints.inspection import RGB_CHANNELS, Inspection, Open, Shapes, inspect_shapes, open_flags
from models.networks.config import (
    FEWEST_TIMESTEPS,
    MOST_TIMESTEPS,
    SCHEDULES,
    ClassifierConfig,
    DiffusionConfig,
    UNetConfig,
)
from vocabulary.counts import counted

HEADS = "num_heads / num_head_channels"
TRAINING_FLAGS = ("noise_schedule", "diffusion_steps", "rescale_timesteps", "predict_xstart", "sigma_small")
USUAL_PROCESS = DiffusionConfig("linear", 1000)


class AnswersError(ValueError):
    """Some answers are missing, or contradict the file or each other; there is one line for each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Answers:
    """The open official flags under their names; None if not given."""

    use_new_attention_order: bool | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    num_heads_upsample: int | None = None
    image_size: int | None = None
    num_res_blocks: int | None = None
    noise_schedule: str | None = None
    diffusion_steps: int | None = None
    rescale_timesteps: bool | None = None
    predict_xstart: bool | None = None
    sigma_small: bool | None = None

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def settle(self, each: Open) -> bool:
        """Return whether these answers set an open flag; one of the two flags for heads sets both."""
        return any(name in self.given() for name in each.flag.split(" / "))

    def over(self, others: "Answers") -> "Answers":
        """These answers, with missing ones taken from the others."""
        given = self.given()
        has_heads = any(name in given for name in HEADS.split(" / "))
        taken = {*given, *HEADS.split(" / "), "num_heads_upsample"} if has_heads else given.keys()
        return replace(self, **{name: value for name, value in others.given().items() if name not in taken})


@dataclass(frozen=True)
class Resolved:
    """A network with all flags determined by its keys, by answers or by assumption.

    process: None for a classifier, which uses the process of the network it guides.
    """

    found: Inspection
    answers: Answers
    config: UNetConfig | ClassifierConfig
    process: DiffusionConfig | None

    @property
    def open(self) -> tuple[Open, ...]:
        """The flags that neither the keys nor the flag for heads determines."""
        return tuple(open_flags(self.config, len(self.found.depths) > 1))

    def value(self, flag: str) -> str:
        """The assumed or given value of an open flag."""
        if flag == HEADS:
            config = self.config
            channels = config.num_head_channels
            return (
                f"{counted(config.num_heads, 'head')} at every width"
                if channels == -1
                else f"{counted(channels, 'channel')} a head"
            )
        if flag == "num_heads_upsample" and getattr(self.config, flag) == -1:
            return "as num_heads"
        names = {"noise_schedule": "schedule", "diffusion_steps": "num_timesteps"}
        settings = self.process if flag in TRAINING_FLAGS else self.config
        return str(getattr(settings, names.get(flag, flag)))

    def missing(self) -> list[str]:
        """A line for each unanswered open flag that images depend on."""
        lines = []
        for each in self.open:
            irrelevant = each.flag == "rescale_timesteps" and self.value("diffusion_steps") == "1000"
            if not self.answers.settle(each) and not irrelevant:
                lines.append(
                    f"{each.flag} is not in the file, so give it; a wrong value has this effect: {each.effect}"
                )
        return lines


def resolve(shapes: Shapes, answers: Answers) -> Resolved:
    """Infer a network from its shapes and the answers; other flags are those of its preset, or the usual ones.

    Raises: NotAdmError; AnswersError for answers that contradict the shapes or each other.
    """
    found = inspect_shapes(shapes, answers.num_res_blocks)
    given = answers.given()
    if lines := [*_contradictions(found, given)]:
        raise AnswersError(lines)
    fields: dict[str, Any] = {name: given[name] for name in ("use_new_attention_order", "image_size") if name in given}
    if "num_head_channels" in given:
        fields["num_head_channels"] = given["num_head_channels"]
    elif "num_heads" in given:
        fields |= {"num_heads": given["num_heads"], "num_head_channels": -1}
    if "num_heads_upsample" in given:
        fields["num_heads_upsample"] = given["num_heads_upsample"]
    config = replace(found.config, **fields)
    return Resolved(found, answers, config, _process(found, given) if isinstance(config, UNetConfig) else None)


def _process(found: Inspection, given: dict[str, Any]) -> DiffusionConfig:
    usual = (found.preset and found.preset.process) or USUAL_PROCESS
    names = {"noise_schedule": "schedule", "diffusion_steps": "num_timesteps"}
    return replace(usual, **{names.get(name, name): given[name] for name in TRAINING_FLAGS if name in given})


def _contradictions(found: Inspection, given: dict[str, Any]) -> Iterator[str]:
    config = found.config
    yield from _wrong_heads(config, given)
    yield from _wrong_size(config, given)
    if (depth := given.get("num_res_blocks")) not in (None, *found.depths):
        yield f"num_res_blocks {depth} does not fit the keys, which allow {' or '.join(map(str, found.depths))}"
    if isinstance(config, ClassifierConfig):
        for name in (each for each in TRAINING_FLAGS if each in given):
            yield f"{name} is not for a classifier, which uses the value of the network it guides"
        return
    if "sigma_small" in given and config.out_channels != RGB_CHANNELS:
        yield f"sigma_small is not open: {config.out_channels} output channels show that the variance is learned"
    if (schedule := given.get("noise_schedule")) not in (None, *SCHEDULES):
        yield f"noise_schedule {schedule!r} is unknown; known are {', '.join(SCHEDULES)}"
    if not FEWEST_TIMESTEPS <= given.get("diffusion_steps", FEWEST_TIMESTEPS) <= MOST_TIMESTEPS:
        yield f"diffusion_steps is {given['diffusion_steps']}; it must be from {FEWEST_TIMESTEPS} to {MOST_TIMESTEPS}"


def _wrong_heads(config: UNetConfig | ClassifierConfig, given: dict[str, Any]) -> Iterator[str]:
    if "num_heads" in given and "num_head_channels" in given:
        yield "num_heads and num_head_channels contradict each other: only one of them makes the heads"
    if "num_heads" in given and isinstance(config, ClassifierConfig) and config.pool == "attention":
        yield "num_heads does not apply to an attention pool, whose heads follow from num_head_channels; give that"
    if "num_heads_upsample" in given and not (
        isinstance(config, UNetConfig) and ("num_heads" in given or config.num_head_channels == -1)
    ):
        yield "num_heads_upsample applies only to a diffusion network with num_heads; give num_heads as well"
    levels = len(config.channel_mult)
    attending = {level for level in range(levels) if 2**level in config.attention_resolutions} | {levels - 1}
    widths = sorted({config.width(level) for level in attending})
    for name in ("num_heads", "num_head_channels", "num_heads_upsample"):
        value = given.get(name, 1)
        if (name, value) == ("num_heads_upsample", -1):  # as many as num_heads
            continue
        if value < 1:
            yield f"{name} {value} is below 1"
        elif wrong := [str(width) for width in widths if width % value]:
            yield f"{name} {value} does not divide the {' and '.join(wrong)} channels of attention layers"


def _wrong_size(config: UNetConfig | ClassifierConfig, given: dict[str, Any]) -> Iterator[str]:
    size, halvings = given.get("image_size"), len(config.channel_mult) - 1
    if size is None:
        return
    if isinstance(config, ClassifierConfig) and config.pool == "attention":
        if size != config.image_size:
            yield f"image_size {size} contradicts the attention pool, whose weights are for {config.image_size} pixels"
    elif size < 1 or size % 2**halvings:
        yield f"image_size {size} cannot be halved {counted(halvings, 'time')}, which the {halvings + 1} levels need"
