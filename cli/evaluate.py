"""`adm evaluate`: scores sets of pictures, measures references, and compares reports."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cli.evaluate_stack import stack
from cli.evaluate_sweep import keep, sweep
from cli.measurement import (
    Extractor,
    Strict,
    kept_work,
    refusals,
    refuse_generated,
    refuse_target,
    watched,
    write_target,
)
from vocabulary.counts import counted

if TYPE_CHECKING:
    from evaluation.extractors import Extractor as OpenedExtractor
    from evaluation.feature_files import Work
    from evaluation.statistics_file import Measured


class ScoresByDefault(TyperGroup):
    """A group with a default command: `adm evaluate SAMPLES` is `adm evaluate scores SAMPLES`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["scores", *args])


app = typer.Typer(
    cls=ScoresByDefault,
    no_args_is_help=True,
    help="Score pictures: adm evaluate SAMPLES --against REFERENCE. Either side is a folder, an archive, idx files, an "
    ".npz or a statistics file, or shapes?images=N&seed=S; samples may be local: or service:PIPELINE?images=N&steps=S.",
)


@app.command()
def scores(
    samples: Annotated[str, typer.Argument(help="pictures, features, local:PIPELINE or service:PIPELINE")],
    against: Annotated[str, typer.Option(help="reference: pictures, a statistics file, or shapes")],
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the figures and their provenance")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="file for the whole report as one page, .html")] = None,
    extractor: Extractor = "judge",
    url: Annotated[
        str | None, typer.Option(help="URL for service:; default the service on ADM_HOST and ADM_PORT")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="number of seeds for local: and service:, from the source's own on")
    ] = 1,
    strict: Strict = False,
) -> None:
    """FID, sFID, Inception Score, KID, precision, recall and more, each with its 95 % interval."""
    with refusals():
        from cli.generated_samples import SERVICE, is_generated, of_seeds
        from evaluation.extractors import load_extractor
        from evaluation.report import evaluate, measure_side, over_seeds, table, width
        from evaluation.score_page import score_page
        from evaluation.sources import takes_size_of_samples
        from evaluation.statistics_file import is_statistics

        refuse_generated(against, "--against")
        if url is not None and not samples.startswith(SERVICE):
            raise ValueError(f"--url {url}: is only for samples of a service; give {SERVICE}PIPELINE as SAMPLES")
        if json_file is not None:
            refuse_target(json_file, "--json", samples, against)
        if page is not None:
            refuse_target(page, "--report", samples, against)
        sources = list(of_seeds(samples, seeds))
        opened = load_extractor(extractor)
        with kept_work(thumbnails=page is not None) as work:
            theirs = None
            # An unusable reference is refused before samples are generated for hours, or measured for minutes.
            if not takes_size_of_samples(against) and (is_generated(samples) or is_statistics(Path(against))):
                with watched() as watch:
                    theirs = measure_side(against, opened, None, watch, "reference", work, strict=strict)
            found = []
            for _, source in sources:
                ours = measured_samples(source, opened, work, url, strict=strict)
                with watched() as watch:
                    if theirs is None:
                        theirs = measure_side(against, opened, width(ours), watch, "reference", work, strict=strict)
                    found.append(evaluate(ours, theirs, opened, watch))
            report = found[0].report
            if seeds > 1:
                report["seeds"] = over_seeds([seed for seed, _ in sources], [each.report for each in found])
            for line in (*table(report), *(f"note: {note}" for note in report["notes"])):
                typer.echo(line)
            if json_file is not None:
                write_target(json_file, "--json", json.dumps(report, indent=1) + "\n")
            if page is not None:
                write_target(page, "--report", score_page(found[0]))
            work.remove()


def measured_samples(
    source: str, extractor: "OpenedExtractor", work: "Work", url: str | None, *, strict: bool
) -> "Measured":
    """The samples' side, which is generated first if needed. Raises: ValueError; BulkError; OSError; WeightsError."""
    from rich.console import Console

    from cli.generated_samples import generate, is_generated
    from evaluation.report import measure_side

    if is_generated(source):
        return generate(source, extractor, work, Console(stderr=True), url)
    with watched() as watch:
        return measure_side(source, extractor, None, watch, "samples", work, strict=strict)


@app.command()
def stats(
    source: Annotated[str, typer.Argument(help="pictures, or shapes?images=N&seed=S")],
    out: Annotated[Path, typer.Option(help="statistics file, .npz")],
    extractor: Extractor = "judge",
    strict: Strict = False,
) -> None:
    """Measure a reference once, and write its features, moments and provenance."""
    with refusals():
        from evaluation.extractors import Features, load_extractor
        from evaluation.report import measure_side
        from evaluation.statistics_file import write_statistics

        if out.suffix != ".npz":
            raise ValueError(f"--out {out}: must end in .npz")
        refuse_target(out, "--out", source)
        refuse_generated(source, "SOURCE")
        opened = load_extractor(extractor)
        with kept_work() as work:
            with watched() as watch:
                found = measure_side(source, opened, None, watch, "pictures", work, strict=strict)
            if not isinstance(found.content, Features):
                raise ValueError(f"{source}: is a statistics file already, and has no features")
            write_statistics(out, found.content, found.provenance)
            work.remove()
        typer.echo(f"{out}: statistics of {counted(found.provenance['images'], 'image')} of {found.provenance['size']}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="report that --json wrote")],
    second: Annotated[Path, typer.Argument(help="another, against the same reference")],
) -> None:
    """Print which metrics of two reports differ by more than chance."""
    with refusals():
        from evaluation.report import compare as differences
        from evaluation.report import read_report

        for line in differences(read_report(first), read_report(second)):
            typer.echo(line)


app.command()(sweep)
app.command()(keep)
app.command()(stack)
