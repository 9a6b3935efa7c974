"""`adm evaluate stack`: measures a stack's pipelines with every sampler, by the stack's judge, against real images."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import print_doubt
from cli.measurement import refusals, refuse_target, watched, write_target

if TYPE_CHECKING:
    from evaluation.stack_report import RealImages
    from models.stack_plan import StackPlan

FEWEST_STACK_IMAGES = 25  # so that settings that get only a share of the images have at least two


def stack(
    name: Annotated[str, typer.Argument(help="a stack's folder, or its name in ADM_WEIGHTS")],
    against: Annotated[
        str, typer.Option(help="training run whose held-out images are the reference, or shapes?seed=S")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the figures")] = None,
    images: Annotated[
        int, typer.Option(min=FEWEST_STACK_IMAGES, help="images of each sampler; the reference has two sets of as many")
    ] = 500,
    pipeline: Annotated[str | None, typer.Option(help="measure only this pipeline; default all of the stack")] = None,
) -> None:
    """Measure each pipeline of a stack with every sampler by the stack's judge, against real images."""
    with refusals():
        from evaluation.stack_report import StackReport, table
        from jobs.settings import Settings
        from models.stack_plan import MANIFEST, read_stack

        if json_file is not None:
            refuse_target(json_file, "--json")
        folder = Path(name) if (Path(name) / MANIFEST).exists() else Settings.load().weights / name
        plan = read_stack(folder.absolute())
        if pipeline is not None:
            if pipeline not in plan.pipelines:
                raise ValueError(f"--pipeline: {name} has no {pipeline!r}; there are {', '.join(plan.pipelines)}")
            plan = plan.only([pipeline])
        real = real_images(against, plan, images)
        with watched() as watch:
            report = StackReport(plan, real, images, watch, print_doubt).measure()
        for line in table(report):
            typer.echo(line)
        if json_file is not None:
            write_target(json_file, "--json", json.dumps(report, indent=1) + "\n")


def real_images(against: str, plan: "StackPlan", images: int) -> "RealImages":
    """Two sets of `images` real images of a stack. Raises: ValueError, one line; OSError."""
    from evaluation.sources import SHAPES, SHAPES_SEED, parse_named, whole_number
    from evaluation.stack_report import RealImages, rendered
    from training.reference_images import held_out_images

    if against.partition("?")[0] == SHAPES:
        named = parse_named(against, ("seed",))
        return rendered(against, whole_number(named, "seed", SHAPES_SEED), plan, images)
    held_out = held_out_images(Path(against), 2 * images)
    return RealImages(against, held_out.images, held_out.class_labels, held_out.class_names)
