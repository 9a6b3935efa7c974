"""`adm train diffusion|classifier|upsampler|judge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.failure import one_line_errors

app = typer.Typer(help="Train the networks of the demo stack; a run goes on where it stopped.", no_args_is_help=True)

Out = Annotated[Path | None, typer.Option(help="folder of the run; default runs/NAME")]
Steps = Annotated[int | None, typer.Option(min=1, help="length of the run in steps; default the recipe's")]
Minutes = Annotated[float | None, typer.Option(min=0.01, help="length of the run in minutes of training instead")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="images a step; default the recipe's")]
LearningRate = Annotated[float | None, typer.Option(min=0, help="default the recipe's")]
Seed = Annotated[int, typer.Option(min=0, help="of the weights, batches and noise")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default all")]
Images = Annotated[
    Path | None,
    typer.Option(
        help="folder of your own pictures, a subfolder a class or CLASS_anything; default the rendered shapes"
    ),
]
LabelsFromOption = Annotated[
    Literal["auto", "folder", "name"],
    typer.Option("--labels-from", help="what tells a class: subfolders, or the text before a name's first _"),
]
Strict = Annotated[bool, typer.Option("--strict", help="end where a file of --images is not used")]
Weights = Annotated[Path | None, typer.Option(help="network file that a new run begins at, to train it further")]
Cache = Annotated[Path, typer.Option(help="folder where rendered sets are kept")]


def _command(name: str, what: str) -> None:
    @app.command(name, help=what)
    def command(
        out: Out = None,
        steps: Steps = None,
        minutes: Minutes = None,
        batch_size: BatchSize = None,
        learning_rate: LearningRate = None,
        seed: Seed = 0,
        threads: Threads = None,
        images: Images = None,
        labels_from: LabelsFromOption = "auto",
        strict: Strict = False,
        weights: Weights = None,
        cache: Cache = Path("data/cache"),
    ) -> None:
        import torch

        from models.checkpoint import WeightsError
        from models.precision import has_fast_bf16
        from training.loop import Plan
        from training.recipes import RECIPES
        from training.session import train

        if threads is not None:
            torch.set_num_threads(threads)
        recipe = RECIPES[name]
        plan = Plan(
            folder=out or Path("runs") / name,
            batch_size=batch_size or recipe.batch_size,
            learning_rate=learning_rate or recipe.learning_rate,
            steps=steps or recipe.steps,
            minutes=minutes,
            weight_decay=recipe.weight_decay,
            ema_rate=recipe.ema_rate,
            seed=seed,
            bf16=has_fast_bf16(),
        )
        with one_line_errors(ValueError, OSError, FloatingPointError, WeightsError):
            train(name, plan, images=images, cache=cache, weights=weights, labels_from=labels_from, strict=strict)


_command("diffusion", "The class-conditional 32x32 base, with a 'no class' row learnt by label dropout.")
_command("classifier", "The noisy classifier that guides it.")
_command("upsampler", "The 32 to 64 upsampler.")
_command("judge", "The judge that measures the stack and takes no part in it.")


@app.command("images")
def look_at_images(
    folder: Annotated[Path, typer.Argument(help="folder of your own pictures")],
    labels_from: LabelsFromOption = "auto",
    strict: Strict = False,
) -> None:
    """Say what training would read of a folder: pictures, classes, and every file that is not used, with the reason."""
    from training.data import own_images
    from training.recipes import RECIPES
    from training.session import print_reading

    with one_line_errors(ValueError, OSError):
        _, reading = own_images(folder, RECIPES["diffusion"].image_size, labels_from, strict=strict)
        print_reading(folder, reading, at_most=None)


@app.command("pack")
def pack(
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder of the stack")] = Path("weights/demo"),
) -> None:
    """Write the averaged weights of the runs into a stack's folder, as float16."""
    from models.checkpoint import WeightsError
    from training.packing import pack as pack_runs

    with one_line_errors(WeightsError, OSError):
        for path in pack_runs(runs, out):
            typer.echo(f"{path}  {path.stat().st_size:,} bytes")
