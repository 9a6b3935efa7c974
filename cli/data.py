"""`adm data`: inspects, packs and fetches training images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.failure import one_line_errors
from vocabulary.counts import counted

app = typer.Typer(help="Training images: inspect, pack, fetch.", no_args_is_help=True)
SHOWN_FILES = 20
From = Annotated[Literal["auto", "folder", "name"], typer.Option("--labels-from", help="source of a file's class")]


@app.command()
def inspect(
    images: Annotated[Path, typer.Argument(help="folder, zip or tar file, idx file or official .npz")],
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the findings, as JSON")] = None,
    sheet: Annotated[Path | None, typer.Option(help="contact sheet; default inspect-NAME.png")] = None,
    labels_from: From = "auto",
) -> None:
    """Count images, classes and sizes, list every unusable file, and draw some images of each class."""
    from datasets.survey import survey
    from standalone.contact_sheet import Tile, contact_sheet

    with one_line_errors(ValueError, OSError):
        found = survey(images, labels_from)
        report = found.report()
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1) + "\n")
        typer.echo(f"{counted(found.images, 'image')}, {counted(len(found.classes), 'class')}; {found.rule}")
        for name, count in found.classes.items():
            typer.echo(f"  {name}: {count}")
        typer.echo(
            f"sizes: {', '.join(f'{size} ({count})' for size, count in list(found.sizes.items())[:SHOWN_FILES])}"
        )
        list_files("skipped", [f"{each.path}: {each.reason}" for each in found.skipped])
        list_files("ignored", [f"{each}: is not a picture" for each in found.ignored])
        if found.alike:
            typer.echo(f"classes that differ in case alone: {', '.join(found.alike)}")
        tiles = [
            Tile(image, name, f"{image.width}x{image.height}") for name, shown in found.shown.items() for image in shown
        ]
        if tiles:
            target = sheet or Path(f"inspect-{images.resolve().name}.png")
            contact_sheet(tiles).save(target)
            typer.echo(f"contact sheet: {target}")


def list_files(what: str, files: Sequence[str]) -> None:
    """Print a line for each file, up to SHOWN_FILES, and the number of the others."""
    for line in files[:SHOWN_FILES]:
        typer.echo(f"{what}: {line}")
    if len(files) > SHOWN_FILES:
        typer.echo(f"{what}: {len(files) - SHOWN_FILES} more; --json lists them")


@app.command()
def pack(
    images: Annotated[Path, typer.Argument(help="folder, zip or tar file")],
    out: Annotated[Path, typer.Argument(help="new folder of the shards")],
    labels_from: From = "auto",
) -> None:
    """Write pictures to webdataset's tar shards, each beside its class."""
    from datasets.shards import pack as pack_shards

    with one_line_errors(ValueError, OSError):
        count, shards, skipped = pack_shards(images, out, labels_from)
        for each in skipped:
            typer.echo(f"left out: {each.path}: {each.reason}")
        typer.echo(f"{out}: {counted(count, 'picture')} in {counted(shards, 'shard')}")


@app.command()
def fetch(
    name: Annotated[Literal["fashion-mnist"], typer.Argument(help="data set")],
    to: Annotated[Path | None, typer.Option(help="folder; default data/NAME")] = None,
    source: Annotated[str | None, typer.Option("--from", help="a mirror: the address of the files' folder")] = None,
) -> None:
    """Fetch a data set from its publisher and verify checksums; a later run resumes an interrupted one."""
    from cli.models import fetch_under_a_bar
    from datasets.published import PUBLISHED, check
    from models.checkpoints.fetch import FetchError
    from models.checkpoints.provenance import ChangedFileError

    published, folder = PUBLISHED[name], to or Path("data") / name
    with one_line_errors(FetchError, ChangedFileError, ValueError, OSError):
        for file, md5 in published.md5.items():
            fetch_under_a_bar(f"{(source or published.url).rstrip('/')}/{file}", folder / file)
            check(folder / file, md5)
        typer.echo(
            f"{folder}: {counted(len(published.md5), 'file')}; next: adm train --preset fashion --images {folder}"
        )
