"""`adm evaluate`: scores sets of pictures."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from cli.failure import one_line_errors, print_doubt
from vocabulary.counts import counted

if TYPE_CHECKING:
    from evaluation.extractors import Extractor as OpenedExtractor
    from evaluation.feature_files import Work
    from evaluation.report import Watch
    from evaluation.stack_report import RealImages
    from evaluation.statistics_file import Measured
    from models.stack_plan import StackPlan


class ScoresByDefault(TyperGroup):
    """A group with a default command: `adm evaluate SAMPLES` is `adm evaluate scores SAMPLES`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named or not args else ["scores", *args])


Number = TypeVar("Number", int, float)
FEWEST_STACK_IMAGES = 25  # so that a setting with a share of them has two at least
app = typer.Typer(
    cls=ScoresByDefault,
    no_args_is_help=True,
    help="Score pictures: adm evaluate SAMPLES --against REFERENCE. Either side is a folder, an archive, idx files, an "
    ".npz or a statistics file, or shapes?images=N&seed=S; samples may be local: or service:PIPELINE?images=N&steps=S.",
)
Extractor = Annotated[
    str, typer.Option(help="judge, judge:FILE as adm train makes one, inception:FILE, or dinov2:FILE")
]
Strict = Annotated[bool, typer.Option("--strict", help="refuse sets with files that cannot be read")]


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
        from cli.generated_samples import is_generated, of_seeds
        from evaluation.extractors import load_extractor
        from evaluation.report import evaluate, measured, over_seeds, table, width
        from evaluation.score_page import score_page
        from evaluation.sources import takes_size_of_samples
        from evaluation.statistics_file import is_statistics
        from files.atomic import write_text

        refuse_generated(against, "--against")
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
                    theirs = measured(against, opened, None, watch, "reference", work, strict=strict)
            found = []
            for _, source in sources:
                ours = measured_samples(source, opened, work, url, strict=strict)
                with watched() as watch:
                    if theirs is None:
                        theirs = measured(against, opened, width(ours), watch, "reference", work, strict=strict)
                    found.append(evaluate(ours, theirs, opened, watch))
            report = found[0].report
            if seeds > 1:
                report["seeds"] = over_seeds([seed for seed, _ in sources], [each.report for each in found])
            for line in (*table(report), *(f"note: {note}" for note in report["notes"])):
                typer.echo(line)
            if json_file is not None:
                write_text(json_file, json.dumps(report, indent=1) + "\n")
            if page is not None:
                write_text(page, score_page(found[0]))
            work.remove()


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
        from evaluation.report import measured
        from evaluation.statistics_file import write_statistics

        if out.suffix != ".npz":
            raise ValueError(f"--out {out}: must end in .npz")
        refuse_target(out, "--out", source)
        refuse_generated(source, "SOURCE")
        opened = load_extractor(extractor)
        with kept_work() as work:
            with watched() as watch:
                found = measured(source, opened, None, watch, "pictures", work, strict=strict)
            if not isinstance(found.content, Features):
                raise ValueError(f"{source}: is a statistics file already, and has no features")
            write_statistics(out, found.content, found.provenance)
            work.remove()
        typer.echo(f"{out}: statistics of {counted(found.provenance['images'], 'image')} of {found.provenance['size']}")


@app.command()
def sweep(
    pipeline: Annotated[str, typer.Argument(help="name of the pipeline")],
    against: Annotated[str, typer.Option(help="reference: pictures, a statistics file, or shapes")],
    out: Annotated[Path, typer.Option(help="report, .json")],
    scale: Annotated[str, typer.Option(help="guidance scales, such as 0,1,2,4,8")] = "0,1,2,4,8",
    steps: Annotated[str, typer.Option(help="numbers of steps, such as 5,10,25,50")] = "10,25",
    sampler: Annotated[str, typer.Option(help="samplers, such as ddim,dpmpp_2m; adm samplers lists them")] = "ddim",
    images: Annotated[int, typer.Option(min=2, help="images of each setting, of all classes in turn")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="the same for every setting")] = 0,
    report: Annotated[Path | None, typer.Option("--report", help="write a page with the plots, .html")] = None,
    extractor: Extractor = "judge",
) -> None:
    """Make images at each setting of a grid, in one engine on this machine; measure them, and recommend settings."""
    with refusals():
        from rich.console import Console

        from cli.sample import on_this_machine
        from cli.sweep import Sweep
        from evaluation.extractors import load_extractor
        from evaluation.html_report import sweep_page
        from evaluation.report import measured
        from evaluation.sweeps import grid, table
        from files.atomic import write_text
        from jobs.settings import Settings
        from worker import local_worker

        refuse_generated(against, "--against")
        refuse_target(out, "--out", against)
        if report is not None:
            refuse_target(report, "--report", against)
        settings = grid(numbers("--scale", scale, float), numbers("--steps", steps, int), sampler.split(","))
        given = Settings.load()
        local = on_this_machine(given, local_worker.devices(given.device)[0], None)
        opened = load_extractor(extractor)
        with kept_work() as work:

            def reference(size: int) -> "Measured":
                with watched() as watch:
                    return measured(against, opened, size, watch, "reference", work, strict=False)

            grid_of_settings = Sweep(local, pipeline, settings, images, seed)
            found = grid_of_settings.run(reference, opened, work, Console(stderr=True))
            for line in table(found["cells"]):
                typer.echo(line)
            for purpose, each in found["recommended"].items():
                typer.echo(f"for {purpose}: {json.dumps(each)}")
            write_text(out, json.dumps(found, indent=1) + "\n")
            if report is not None:
                write_text(report, sweep_page(found))
            work.remove()


@app.command()
def keep(
    reports: Annotated[list[Path], typer.Argument(help="reports of adm evaluate sweep, .json; several are joined")],
) -> None:
    """Store a sweep beside its pipeline's weights; workers that start later announce it, and the page draws it."""
    with refusals():
        from cli.sweep import joined, kept
        from engine.loading import choose
        from files.atomic import write_text
        from jobs.contract.sweeps import SUFFIX
        from jobs.settings import Settings
        from worker.kept_sweeps import weights_of
        from worker.local_worker import pipeline_of

        sweeps = []
        for each in reports:
            try:
                sweeps.append(kept(json.loads(each.read_bytes())))
            except ValueError as error:
                raise ValueError(f"{each}: {error}") from error
        sweep, settings = joined(sweeps), Settings.load()
        if sweep.weights != weights_of(pipeline_of(settings, sweep.pipeline)):
            raise ValueError(f"{reports[0]}: was made with other weights than {sweep.pipeline!r} has now")
        (plan,) = choose([sweep.pipeline], settings.weights)
        path = plan.base.path.parent / f"{sweep.pipeline}{SUFFIX}"
        write_text(path, sweep.model_dump_json(indent=1) + "\n")
        typer.echo(path)


@app.command()
def stack(
    name: Annotated[str, typer.Argument(help="a stack's folder, or its name in ADM_WEIGHTS")],
    against: Annotated[
        str, typer.Option(help="training run whose held-out images are the reference, or shapes?seed=S")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the figures")] = None,
    images: Annotated[
        int, typer.Option(min=FEWEST_STACK_IMAGES, help="images of each sampler; the reference has two sets of as many")
    ] = 500,
) -> None:
    """Measure each pipeline of a stack with every sampler by the stack's judge, against real images."""
    with refusals():
        from evaluation.stack_report import StackReport, table
        from files.atomic import write_text
        from jobs.settings import Settings
        from models.stack_plan import MANIFEST, read_stack

        if json_file is not None:
            refuse_target(json_file, "--json")
        folder = Path(name) if (Path(name) / MANIFEST).exists() else Settings.load().weights / name
        plan = read_stack(folder.absolute())
        real = real_images(against, plan, images)
        with watched() as watch:
            report = StackReport(plan, real, images, watch, print_doubt).measure()
        for line in table(report):
            typer.echo(line)
        if json_file is not None:
            write_text(json_file, json.dumps(report, indent=1) + "\n")


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


def numbers(option: str, given: str, kind: "type[Number]") -> "list[Number]":
    """Parse an option's list of numbers. Raises: ValueError, one line."""
    try:
        return [kind(each) for each in given.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {given}: must be numbers, separated by commas") from error


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


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Print errors that a user can correct in one line, and exit."""
    from bulk.errors import BulkError
    from models.checkpoints.network_file import WeightsError

    with one_line_errors(ValueError, OSError, WeightsError, BulkError):
        yield


def refuse_generated(source: str, where: str) -> None:
    """Refuse a generated source where only existing ones are allowed. Raises: ValueError."""
    from cli.generated_samples import LOCAL, SERVICE, is_generated

    if is_generated(source):
        raise ValueError(f"{where} {source}: must be an existing set; only SAMPLES may be {LOCAL}... or {SERVICE}...")


def refuse_target(path: Path, option: str, *sources: str) -> None:
    """Check a target path before minutes of work; it must be none of the sources. Raises: ValueError."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{option} {path}: is a folder, or its folder does not exist")
    if path.is_file() and any(Path(each).exists() and path.samefile(each) for each in sources):
        raise ValueError(f"{option} {path}: would replace the set that is measured; give another file")


def kept_work(*, thumbnails: bool = False) -> "Work":
    """The folder in which features are stored until their measurement ends."""
    from evaluation.feature_files import Work
    from jobs.settings import Settings

    return Work(Settings.load().data / "evaluate", thumbnails=thumbnails)


def measured_samples(
    source: str, extractor: "OpenedExtractor", work: "Work", url: str | None, *, strict: bool
) -> "Measured":
    """The samples' side, which is generated first if needed. Raises: ValueError; BulkError; OSError; WeightsError."""
    from rich.console import Console

    from cli.generated_samples import generate, is_generated
    from evaluation.report import measured

    if is_generated(source):
        return generate(source, extractor, work, Console(stderr=True), url)
    with watched() as watch:
        return measured(source, extractor, None, watch, "samples", work, strict=strict)


@contextlib.contextmanager
def watched() -> Iterator["Watch"]:
    """A progress bar on standard error while pictures are measured, and then the name of each metric."""
    from rich.console import Console

    from bulk.progress import shown_progress
    from evaluation.report import Watch

    with shown_progress(Console(stderr=True)) as progress:
        bar = progress.add_task("pictures", total=1, note="")

        def on_part(part: str, total: int) -> None:
            progress.reset(bar, total=total, description=part, note="")

        yield Watch(on_part, lambda images: progress.advance(bar, images))
