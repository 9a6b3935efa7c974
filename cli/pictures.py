"""`adm encode`, `adm reconstruct`, `adm interpolate`: DDIM inversion of pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors, print_doubt
from vocabulary.counts import counted

if TYPE_CHECKING:
    from torch import Tensor

Picture = Annotated[Path, typer.Argument(help="picture of any size; its middle square is taken", exists=True)]
StackFolder = Annotated[
    Path | None, typer.Option("--stack", help="folder with a stack.json, instead of the stacks in ADM_WEIGHTS")
]
Name = Annotated[
    str | None,
    typer.Option("--pipeline", help="pipeline, also an official one; default the first of ADM_PIPELINES or of --stack"),
]
Steps = Annotated[int, typer.Option(min=2, help="steps in each direction; twice as many halve the error")]
ClassName = Annotated[
    str | None, typer.Option("--class", help="name or index of the picture's class; default no class")
]
Scale = Annotated[
    float, typer.Option("--scale", min=0, max=50, help="guidance of the decoding, which then restores less")
]


def encode(
    picture: Picture,
    out: Annotated[Path, typer.Argument(help="safetensors file to write, one tensor `latent`")],
    stack: StackFolder = None,
    pipeline: Name = None,
    steps: Steps = 50,
    class_name: ClassName = None,
) -> None:
    """Encode a picture by DDIM, and write its latent."""
    from safetensors.torch import save_file

    from jobs.settings import Settings
    from worker.inverting import open_inverter, read_square

    with one_line_errors(*refusals()):
        inverter = open_inverter(Settings.load(), stack, pipeline, steps, class_name, 0.0, print_doubt)
        latent = inverter.encode(read_square(picture, inverter)[None])[0]
    save_file({"latent": latent}, out, {"steps": str(steps), "class": class_name or ""})
    typer.echo(f"{out}: {list(latent.shape)}, standard deviation {latent.std():.3f} (noise has 1)")


def reconstruct(
    picture: Picture,
    out: Annotated[Path, typer.Argument(help="PNG to write")],
    stack: StackFolder = None,
    pipeline: Name = None,
    steps: Steps = 50,
    class_name: ClassName = None,
    scale: Scale = 0.0,
) -> None:
    """Encode a picture, decode it again, and print the error."""
    from engine.inversion import reconstruction_error
    from jobs.settings import Settings
    from worker.inverting import open_inverter, read_square

    with one_line_errors(*refusals()):
        inverter = open_inverter(Settings.load(), stack, pipeline, steps, class_name, scale, print_doubt)
        pixels = read_square(picture, inverter)
        back = inverter.reconstruct(pixels[None], scale)[0]
    write_png(back, out)
    typer.echo(f"{out}: off by {reconstruction_error(back, pixels)['mean_absolute']:.2f} of 255 on average")


def interpolate(
    first: Picture,
    last: Picture,
    out: Annotated[Path, typer.Argument(help="folder for frame-NN.png")],
    frames: Annotated[int, typer.Option(min=2, max=1000, help="both ends included")] = 8,
    stack: StackFolder = None,
    pipeline: Name = None,
    steps: Steps = 50,
    class_name: ClassName = None,
    scale: Scale = 0.0,
) -> None:
    """Write frames between two pictures, by spherical interpolation of their latents."""
    from jobs.settings import Settings
    from worker.inverting import open_inverter, read_square

    with one_line_errors(*refusals()):
        inverter = open_inverter(Settings.load(), stack, pipeline, steps, class_name, scale, print_doubt)
        shown = inverter.interpolate(read_square(first, inverter), read_square(last, inverter), frames, scale)
    out.mkdir(parents=True, exist_ok=True)
    digits = len(str(frames - 1))
    for index, frame in enumerate(shown):
        write_png(frame, out / f"frame-{index:0{digits}d}.png")
    typer.echo(f"{out}: {counted(frames, 'frame')}")


def refusals() -> tuple[type[Exception], ...]:
    """Errors that are printed in one line."""
    from engine.errors import UnknownOfferError

    return UnknownOfferError, OSError, ValueError


def write_png(pixels: "Tensor", path: Path) -> None:
    """Write pixels [3, H, W], uint8."""
    from PIL import Image

    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path)
