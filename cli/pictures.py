"""`adm encode`, `adm reconstruct`, `adm interpolate`: pictures through the latents that DDIM makes them of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from torch import Tensor

    from engine.inversion import Inverter

Picture = Annotated[Path, typer.Argument(help="picture of any size; its middle square is taken", exists=True)]
Stack = Annotated[Path, typer.Option("--stack", help="folder of the weights, with its stack.json")]
Model = Annotated[str | None, typer.Option("--pipeline", help="pipeline of the stack; default its first")]
Steps = Annotated[int, typer.Option(min=2, help="steps each way; twice as many, half the error")]
ClassName = Annotated[
    str | None, typer.Option("--class", help="name or index of the picture's class; default no class")
]
Scale = Annotated[float, typer.Option("--scale", min=0, max=50, help="guidance on the way back, which leads elsewhere")]
DEMO = Path("weights/demo")


def encode(
    picture: Picture,
    out: Annotated[Path, typer.Argument(help="safetensors file to write, one tensor `latent`")],
    stack: Stack = DEMO,
    pipeline: Model = None,
    steps: Steps = 50,
    class_name: ClassName = None,
) -> None:
    """Write the latent that DDIM makes a picture of."""
    from safetensors.torch import save_file

    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name)
        latent = inverter.encode(read_square(picture, inverter)[None])[0]
    save_file({"latent": latent}, out, {"steps": str(steps), "class": class_name or ""})
    typer.echo(f"{out}: {list(latent.shape)}, standard deviation {latent.std():.3f} (noise has 1)")


def reconstruct(
    picture: Picture,
    out: Annotated[Path, typer.Argument(help="PNG to write")],
    stack: Stack = DEMO,
    pipeline: Model = None,
    steps: Steps = 50,
    class_name: ClassName = None,
    scale: Scale = 0.0,
) -> None:
    """Encode a picture, decode it again, and tell how far it came back."""
    from engine.inversion import reconstruction_error

    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name)
        pixels = read_square(picture, inverter)
        back = inverter.reconstruct(pixels[None], scale)[0]
    write_png(back, out)
    typer.echo(f"{out}: off by {reconstruction_error(back, pixels)['mean_absolute']:.2f} of 255 on average")


def interpolate(
    first: Picture,
    last: Picture,
    out: Annotated[Path, typer.Argument(help="folder for frame-NN.png")],
    frames: Annotated[int, typer.Option(min=2, max=1000, help="both ends included")] = 8,
    stack: Stack = DEMO,
    pipeline: Model = None,
    steps: Steps = 50,
    class_name: ClassName = None,
    scale: Scale = 0.0,
) -> None:
    """Write the frames on the way from one picture to another, spherical between their latents."""
    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name)
        shown = inverter.interpolate(read_square(first, inverter), read_square(last, inverter), frames, scale)
    out.mkdir(parents=True, exist_ok=True)
    digits = len(str(frames - 1))
    for index, frame in enumerate(shown):
        write_png(frame, out / f"frame-{index:0{digits}d}.png")
    typer.echo(f"{out}: {frames} frames")


def refusals() -> tuple[type[Exception], ...]:
    """What is told in one line."""
    from engine.stage import UnknownOfferError
    from models.checkpoint import WeightsError

    return WeightsError, UnknownOfferError, OSError, ValueError


def open_inverter(stack: Path, name: str | None, steps: int, class_name: str | None) -> "Inverter":
    """An engine of one's own with a pipeline of a stack. Raises: WeightsError; ValueError for an unknown name."""
    from engine.engine import Engine
    from engine.inversion import Inverter
    from engine.pipeline import Pipeline, build_stages
    from models.stack import load_stack

    loaded = load_stack(stack)
    name = name or next(iter(loaded.pipelines))
    if name not in loaded.pipelines:
        raise ValueError(f"{stack} has no pipeline {name!r}; there are {', '.join(loaded.pipelines)}")
    rows = 8
    engine = Engine(build_stages([loaded], rows), rows)
    return Inverter(
        engine, Pipeline(loaded.pipelines[name], loaded), steps, class_index(loaded.class_names, class_name)
    )


def class_index(names: tuple[str, ...], given: str | None) -> int | None:
    """The index of a class by name or number. Raises: ValueError for one that there is not."""
    if given is None:
        return None
    if given in names:
        return names.index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise ValueError(f"unknown class {given!r}; there are {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}")


def read_square(path: Path, inverter: "Inverter") -> "Tensor":
    """A picture's middle square as the base stage's pixels [3, H, W], uint8."""
    from PIL import Image, ImageOps

    from datasets.image_folder import square_pixels

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return square_pixels(upright, inverter.pipeline.stack.base.network.config.image_size)


def write_png(pixels: "Tensor", path: Path) -> None:
    """Write pixels [3, H, W], uint8."""
    from PIL import Image

    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path)
