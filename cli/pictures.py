"""`adm encode`, `adm reconstruct`, `adm interpolate`: DDIM inversion of pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors, tell_doubt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engine.inversion import Inverter
    from engine.pipeline import Pipeline
    from jobs.settings import Settings

Picture = Annotated[Path, typer.Argument(help="picture of any size; its middle square is taken", exists=True)]
StackFolder = Annotated[
    Path | None, typer.Option("--stack", help="folder with a stack.json, in place of all that ADM_WEIGHTS has")
]
Name = Annotated[
    str | None, typer.Option("--pipeline", help="official ones too; default the first of ADM_PIPELINES, or of --stack")
]
Steps = Annotated[int, typer.Option(min=2, help="steps each way; twice as many, half the error")]
ClassName = Annotated[
    str | None, typer.Option("--class", help="name or index of the picture's class; default no class")
]
Scale = Annotated[float, typer.Option("--scale", min=0, max=50, help="guidance on the way back, which leads elsewhere")]
ROWS = 8


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

    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name)
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

    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name, scale)
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
    with one_line_errors(*refusals()):
        inverter = open_inverter(stack, pipeline, steps, class_name, scale)
        shown = inverter.interpolate(read_square(first, inverter), read_square(last, inverter), frames, scale)
    out.mkdir(parents=True, exist_ok=True)
    digits = len(str(frames - 1))
    for index, frame in enumerate(shown):
        write_png(frame, out / f"frame-{index:0{digits}d}.png")
    typer.echo(f"{out}: {frames} frames")


def refusals() -> tuple[type[Exception], ...]:
    """Errors that are printed in one line."""
    from engine.errors import UnknownOfferError

    return UnknownOfferError, OSError, ValueError


def open_inverter(
    folder: Path | None, name: str | None, steps: int, class_name: str | None, scale: float = 0.0
) -> "Inverter":
    """An inverter of a pipeline, loaded as by a worker.

    Raises: SettingsError; ValueError for unusable weights, or guidance that the pipeline does not support.
    """
    from engine.engine import Engine
    from engine.inversion import Inverter
    from engine.pipeline import build_stages
    from jobs.settings import Settings
    from models.checkpoints.network_file import WeightsError
    from vocabulary.classes import ClassNames
    from worker.assembling import choose_precision
    from worker.error_texts import error_text
    from worker.loading import choose_device

    settings = Settings.load()
    device = choose_device(settings.device)
    try:
        pipeline = load_pipeline(settings, device, folder, name)
    except WeightsError as error:
        raise ValueError(error_text(error, "--pipeline")) from error
    stack, spec = pipeline.stack, pipeline.spec
    label = None if class_name is None else ClassNames(dict(enumerate(stack.class_names))).parse(class_name)
    if label is None and spec.conditional and stack.no_class_label is None:
        raise ValueError(f"{spec.name!r} has no row for no class; give --class")
    if scale and stack.classifier is None:
        raise ValueError(f"--scale: {spec.name!r} has no classifier to be guided by")
    if scale and label is None:
        raise ValueError("--scale needs --class: without one there is nothing to guide towards")
    stages = build_stages([stack], ROWS, precision=choose_precision(settings.precision, device))
    return Inverter(Engine(stages, ROWS), pipeline, steps, label)


def load_pipeline(settings: "Settings", device: "torch.device", folder: Path | None, name: str | None) -> "Pipeline":
    """A pipeline of a stack's folder, or of ADM_WEIGHTS; doubts about its weights are printed to stderr."""
    from engine.loading import choose, load_plans
    from engine.pipeline import Pipeline
    from models.stack_plan import read_stack

    if folder is None:
        name = name or settings.pipelines[0]
        plans = choose([name], settings.weights)
    else:
        plan = read_stack(folder)
        name = name or next(iter(plan.pipelines))
        if name not in plan.pipelines:
            raise ValueError(f"{folder} has no pipeline {name!r}; there are {', '.join(plan.pipelines)}")
        plans = [plan.only([name])]
    (stack,) = load_plans(plans, ROWS, device, tell_doubt)
    return Pipeline(stack.pipelines[name], stack)


def read_square(path: Path, inverter: "Inverter") -> "Tensor":
    """A picture as pixels of the base stage's size."""
    return read_pixels(path, inverter.pipeline.stack.base.network.config.image_size)


def read_pixels(path: Path, size: int) -> "Tensor":
    """A picture's middle square [3, size, size], uint8. Raises: ValueError, with its name, if it is no picture."""
    from datasets.image_folder import square_pixels
    from pictures.decoding import PictureError, decode

    try:
        return square_pixels(decode(path), size)
    except PictureError as error:
        raise ValueError(f"{path.name}: {error}") from error


def write_png(pixels: "Tensor", path: Path) -> None:
    """Write pixels [3, H, W], uint8."""
    from PIL import Image

    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(path)
