"""The options of the flags that a checkpoint's keys leave open, under their official names."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

NewOrder = Annotated[
    bool | None,
    typer.Option("--use-new-attention-order/--no-use-new-attention-order", help="qkv grouped by q, k, v before heads"),
]
NumHeads = Annotated[int | None, typer.Option(help="heads at every width")]
HeadChannels = Annotated[int | None, typer.Option(help="channels of each head")]
DecoderHeads = Annotated[int | None, typer.Option(help="with --num-heads: heads in the decoder; -1: the same number")]
ImageSize = Annotated[int | None, typer.Option(help="edge of the images, pixels")]
NumResBlocks = Annotated[int | None, typer.Option(help="residual blocks per level, if the keys allow several numbers")]
NoiseSchedule = Annotated[Literal["linear", "cosine"] | None, typer.Option()]
DiffusionSteps = Annotated[int | None, typer.Option(help="timesteps of training")]
RescaleTimesteps = Annotated[
    bool | None,
    typer.Option("--rescale-timesteps/--no-rescale-timesteps", help="the network sees t * 1000 / diffusion_steps"),
]
PredictXstart = Annotated[
    bool | None, typer.Option("--predict-xstart/--no-predict-xstart", help="the output is x_0, not eps")
]
SigmaSmall = Annotated[
    bool | None, typer.Option("--sigma-small/--no-sigma-small", help="use the posterior's variance, if none is learned")
]
OPTIONS = {
    "use_new_attention_order": NewOrder,
    "num_heads": NumHeads,
    "num_head_channels": HeadChannels,
    "num_heads_upsample": DecoderHeads,
    "image_size": ImageSize,
    "num_res_blocks": NumResBlocks,
    "noise_schedule": NoiseSchedule,
    "diffusion_steps": DiffusionSteps,
    "rescale_timesteps": RescaleTimesteps,
    "predict_xstart": PredictXstart,
    "sigma_small": SigmaSmall,
}


def takes_open_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them as its last argument, `answers`."""

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        from models.checkpoints.open_flags import Answers

        answers = Answers(**{name: given.pop(name) for name in OPTIONS})
        command(**given, answers=answers)

    *own, _ = inspect.signature(command).parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(name, kind, default=None, annotation=each) for name, each in OPTIONS.items()]
    with_options.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined] # read by typer
    with_options.__annotations__ = {each.name: each.annotation for each in (*own, *options)}
    return with_options
