"""The options of the flags that a checkpoint's keys leave open, under their official names."""

from typing import Annotated, Literal

import typer

NewOrder = Annotated[
    bool | None,
    typer.Option("--use-new-attention-order/--no-use-new-attention-order", help="qkv grouped by q, k, v before heads"),
]
NumHeads = Annotated[int | None, typer.Option(help="heads at every width")]
HeadChannels = Annotated[int | None, typer.Option(help="channels of each head")]
DecoderHeads = Annotated[int | None, typer.Option(help="with --num-heads: those of the decoder; -1: as many")]
ImageSize = Annotated[int | None, typer.Option(help="edge of the images, pixels")]
NumResBlocks = Annotated[int | None, typer.Option(help="a level, where the keys allow several")]
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
    bool | None, typer.Option("--sigma-small/--no-sigma-small", help="the posterior's variance, where none is learned")
]
