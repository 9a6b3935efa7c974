"""`adm grid`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.generate import FAILED_STATUS, STOPPED_STATUS, ClassLabel, Eta, ModelName, Priority, Scale, Upsample, class_of
from cli.progress import progress_bar
from cli.remote import AsJson, Url, connected
from vocabulary.counts import counted

if TYPE_CHECKING:
    from adm_client import Grid

SHORT = {"scale": "guidance_scale", "class": "class_label"}
ASK_SECONDS = 1


def grid(
    x: Annotated[str, typer.Option("--x", help="from left to right, such as scale=0,1,2 or sampler=ddim,heun")],
    class_label: ClassLabel = None,
    y: Annotated[str | None, typer.Option("--y", help="from top to bottom, such as steps=10,25")] = None,
    out: Annotated[Path, typer.Option(help="folder for the sheet and the PNGs")] = Path(),
    model: ModelName = None,
    guidance_scale: Scale = None,
    steps: Annotated[int | None, typer.Option(help="default: the pipeline's")] = None,
    sampler: Annotated[str | None, typer.Option(help="default: the pipeline's")] = None,
    eta: Eta = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of all cells; default: drawn at random")] = None,
    upsample: Upsample = None,
    priority: Priority = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make one image for each pair of values, from one seed, and write ID-sheet.png and ID-ROW-COLUMN.png.

    Axes: scale, steps, sampler, class, eta, seed, time_grid, thresholding, guidance_schedule, eps_scale.
    """
    given = {
        "model": model, "guidance_scale": guidance_scale, "steps": steps, "sampler": sampler, "eta": eta, "seed": seed,
        "upsample": upsample, "priority": priority,
    }  # fmt: skip
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if class_label is not None:
        fields["class_label"] = class_of(class_label)
    across, down = axis_of("--x", x), None if y is None else axis_of("--y", y)
    with connected(url) as client:
        made: Grid = client.grid(across, down, **fields)
        try:
            follow(made)
        except KeyboardInterrupt:
            made.cancel()
            typer.echo(f"adm: grid {made.id} is cancelled", err=True)
            raise typer.Exit(STOPPED_STATUS) from None
        if as_json:
            typer.echo(made.state.model_dump_json())
        for path in made.save(out):
            typer.echo(path, err=as_json)
        report(made)


def axis_of(option: str, text: str) -> Any:
    """Parse NAME=VALUE,VALUE. Exits with one line for anything else."""
    name, separator, values = text.partition("=")
    if not (name and separator and values):
        typer.echo(f"adm: {option} {text}: must be a field and its values, such as scale=0,1,2", err=True)
        raise typer.Exit(FAILED_STATUS)
    field = SHORT.get(name, name)
    return {field: [value_of(field, each) for each in values.split(",")]}


def value_of(field: str, text: str) -> int | float | str | None:
    """Parse a value of a field."""
    if field == "class_label":
        return class_of(text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def follow(made: "Grid") -> None:
    """Show the progress of the cells until all have ended."""
    cells = len(made.state.cells)
    with progress_bar(f"0 of {counted(cells, 'image')}") as show:
        while not made.state.is_final:
            made.refresh(ASK_SECONDS)
            done = sum(1.0 if each.job is None else each.job.progress.fraction for each in made.state.cells)
            show(f"{made.state.ended} of {counted(cells, 'image')}", done / cells)


def report(made: "Grid") -> None:
    """Exit with a line and a status unless every cell has an image."""
    if lacking := len(made.state.cells) - made.state.completed:
        typer.echo(f"adm: grid {made.id}: no image in {lacking} of {counted(len(made.state.cells), 'cell')}", err=True)
        raise typer.Exit(FAILED_STATUS)
