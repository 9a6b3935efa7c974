"""`adm evaluate`: scores sets of pictures."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from evaluation.report import Watch

LOCAL, SERVICE = "local:", "service:"
LOCAL_IMAGES = 500
LOCAL_SETTINGS = (
    "images",
    "seed",
    "classes",
    "scale",
    "steps",
    "sampler",
    "eta",
    "time_grid",
    "thresholding",
    "upsample",
)


class ScoresByDefault(TyperGroup):
    """A group whose first word need not be a command: `adm evaluate SAMPLES` is `adm evaluate scores SAMPLES`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["scores", *args])


app = typer.Typer(
    cls=ScoresByDefault,
    no_args_is_help=True,
    help="Score pictures: adm evaluate SAMPLES --against REFERENCE. Either side is a folder, an archive, idx files, an "
    ".npz or a statistics file, or shapes?images=N&seed=S; samples may be local:PIPELINE?images=N&steps=S.",
)
Extractor = Annotated[str, typer.Option(help="judge, or judge:FILE as adm train makes one")]
Strict = Annotated[bool, typer.Option("--strict", help="refuse sets with files that cannot be read")]


@app.command()
def scores(
    samples: Annotated[str, typer.Argument(help="pictures, features, or local:PIPELINE")],
    against: Annotated[str, typer.Option(help="reference: pictures, a statistics file, or shapes")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures and where they come from")] = None,
    extractor: Extractor = "judge",
    strict: Strict = False,
) -> None:
    """FID, sFID, Inception Score, KID, precision, recall, density and coverage, each with its 95 % interval."""
    with refusals():
        from evaluation.extractors import load_extractor
        from evaluation.report import evaluate, table

        refuse_sources(against, "--against")
        if json_file is not None:
            refuse_target(json_file, "--json")
        opened = load_extractor(extractor)
        with generated(samples) as (source, made), watched() as watch:
            report = evaluate(source, against, opened, watch, strict=strict, made=made).report
        for line in (*table(report), *(f"note: {note}" for note in report["notes"])):
            typer.echo(line)
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1) + "\n")


@app.command()
def stats(
    source: Annotated[str, typer.Argument(help="pictures, or shapes?images=N&seed=S")],
    out: Annotated[Path, typer.Option(help="statistics file, .npz")],
    extractor: Extractor = "judge",
    strict: Strict = False,
) -> None:
    """Measure a reference once: its features, moments and where they come from."""
    with refusals():
        from evaluation.extractors import Features, load_extractor
        from evaluation.report import measured
        from evaluation.statistics_file import write_statistics

        if out.suffix != ".npz":
            raise ValueError(f"--out {out}: must end in .npz")
        refuse_target(out, "--out")
        refuse_sources(source, "SOURCE")
        opened = load_extractor(extractor)
        with watched() as watch:
            found = measured(source, opened, None, watch, "pictures", strict=strict)
        if not isinstance(found.content, Features):
            raise ValueError(f"{source}: is a statistics file without features already")
        write_statistics(out, found.content, found.provenance)
        typer.echo(f"{out}: statistics of {found.provenance['images']} images of {found.provenance['size']}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="report of --json")],
    second: Annotated[Path, typer.Argument(help="another, against the same reference")],
) -> None:
    """Say which metrics of two reports differ by more than chance."""
    with refusals():
        from evaluation.report import compare as differences
        from evaluation.report import read_report

        for line in differences(read_report(first), read_report(second)):
            typer.echo(line)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What a user can mend, in one line."""
    from bulk.errors import BulkError
    from models.checkpoints.network_file import WeightsError

    with one_line_errors(ValueError, OSError, WeightsError, BulkError):
        yield


def refuse_sources(source: str, where: str) -> None:
    """Only samples are generated. Raises: ValueError."""
    if source.startswith((LOCAL, SERVICE)):
        raise ValueError(f"{where} {source}: must be there already; only SAMPLES may be {LOCAL}PIPELINE")


def refuse_target(path: Path, option: str) -> None:
    """What takes minutes is not lost for a slip in a name. Raises: ValueError."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{option} {path}: is a folder, or lies in none that is there")


@contextlib.contextmanager
def generated(samples: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The samples' source, made first where it is local:PIPELINE, with the record of their making.

    Raises: ValueError; BulkError.
    """
    if samples.startswith(SERVICE):
        raise ValueError(f"{samples}: is not offered; adm sample --out FILE.npz, then adm evaluate FILE.npz")
    if not samples.startswith(LOCAL):
        yield samples, None
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.npz"
        make(samples.removeprefix(LOCAL), out)
        record = json.loads(out.with_name(f"{out.name}.json").read_text())
        yield str(out), {"source": samples, "made": record}


def make(text: str, out: Path) -> None:
    """Generate the images of PIPELINE?KEY=VALUE in this process, as adm sample --local does. Raises: as generated."""
    from rich.console import Console

    from bulk.errors import BulkError, StoppedError
    from bulk.run import Order, run
    from cli.sample import on_this_machine
    from evaluation.sources import parse_named, whole_number
    from jobs.settings import Settings

    named = parse_named(text, LOCAL_SETTINGS)
    upsample = named.settings.get("upsample")
    if upsample not in (None, "yes", "no"):
        raise ValueError(f"{text}: upsample={upsample}: must be yes or no")
    order = Order(
        out=out,
        model=named.name,
        count=whole_number(named, "images", LOCAL_IMAGES, 2),
        classes=named.settings.get("classes", "balanced"),
        seed=whole_number(named, "seed", 0),
        guidance_scale=number(named.settings, "scale"),
        steps=whole_number(named, "steps", 0, 1) if "steps" in named.settings else None,
        sampler=named.settings.get("sampler"),
        eta=number(named.settings, "eta"),
        time_grid=named.settings.get("time_grid"),
        thresholding=named.settings.get("thresholding"),
        upsample=None if upsample is None else upsample == "yes",
    )
    try:
        run(order, on_this_machine(Settings.load(), None, None), Console(stderr=True))
    except StoppedError as error:
        raise BulkError(f"{LOCAL}{text}: stopped; its images are not kept, those of adm sample are") from error


def number(settings: Any, key: str) -> float | None:
    """A setting that need not be whole. Raises: ValueError, one line."""
    if key not in settings:
        return None
    try:
        return float(settings[key])
    except ValueError as error:
        raise ValueError(f"{key}={settings[key]}: must be a number") from error


@contextlib.contextmanager
def watched() -> Iterator["Watch"]:
    """A bar with the time left on standard error while pictures are measured, and the name of what is computed."""
    from rich.console import Console

    from bulk.progress import shown_progress
    from evaluation.report import Watch

    with shown_progress(Console(stderr=True)) as progress:
        bar = progress.add_task("pictures", total=1, note="")

        def on_part(part: str, total: int) -> None:
            progress.reset(bar, total=total, description=part, note="")

        yield Watch(on_part, lambda images: progress.advance(bar, images))
