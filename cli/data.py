"""`adm data`: looks at training images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.failure import one_line_errors

app = typer.Typer(help="Training images: what a folder or a file holds.", no_args_is_help=True)
SHOWN_FILES = 20


@app.callback()
def data() -> None:
    """Keep `inspect` a command of its own, as it is the only one."""


@app.command()
def inspect(
    images: Annotated[Path, typer.Argument(help="folder, idx file or official .npz")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write what was found here, as JSON")] = None,
    sheet: Annotated[Path | None, typer.Option(help="contact sheet; default inspect-NAME.png")] = None,
    labels_from: Annotated[str, typer.Option(help="auto, folder or name: where a file's class stands")] = "auto",
) -> None:
    """Count images, classes and sizes, name every file that cannot be used, and draw some images of each class."""
    from datasets.survey import survey
    from stack.contact_sheet import Tile, contact_sheet

    if labels_from not in ("auto", "folder", "name"):
        raise typer.BadParameter("auto, folder or name", param_hint="--labels-from")
    with one_line_errors(ValueError, OSError):
        found = survey(images, labels_from)  # type: ignore[arg-type]  # checked above
        report = found.report()
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1) + "\n")
        typer.echo(f"{found.images} images, {len(found.classes)} classes; {found.rule}")
        for name, count in found.classes.items():
            typer.echo(f"  {name}: {count}")
        typer.echo(
            f"sizes: {', '.join(f'{size} ({count})' for size, count in list(found.sizes.items())[:SHOWN_FILES])}"
        )
        for skipped in found.skipped[:SHOWN_FILES]:
            typer.echo(f"skipped: {skipped.path}: {skipped.reason}")
        if len(found.skipped) > SHOWN_FILES:
            typer.echo(f"skipped: {len(found.skipped) - SHOWN_FILES} more; --json lists them")
        if found.alike:
            typer.echo(f"classes that differ in case alone: {', '.join(found.alike)}")
        if found.ignored:
            typer.echo(f"ignored: {len(found.ignored)} files that are no pictures")
        tiles = [
            Tile(image, name, f"{image.width}x{image.height}") for name, shown in found.shown.items() for image in shown
        ]
        if tiles:
            target = sheet or Path(f"inspect-{images.resolve().name}.png")
            contact_sheet(tiles).save(target)
            typer.echo(f"contact sheet: {target}")
