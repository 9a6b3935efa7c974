"""`adm evaluate sweep` and `keep`: a pipeline at each setting of a grid, and the report beside its weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.measurement import Extractor, kept_work, refusals, refuse_generated, refuse_target, watched, write_target

if TYPE_CHECKING:
    from evaluation.statistics_file import Measured

Number = TypeVar("Number", int, float)


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
        from evaluation.report import measure_side
        from evaluation.sweeps import grid, table
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
                    return measure_side(against, opened, size, watch, "reference", work, strict=False)

            grid_of_settings = Sweep(local, pipeline, settings, images, seed)
            found = grid_of_settings.run(reference, opened, work, Console(stderr=True))
            for line in table(found["cells"]):
                typer.echo(line)
            for purpose, each in found["recommended"].items():
                typer.echo(f"for {purpose}: {json.dumps(each)}")
            write_target(out, "--out", json.dumps(found, indent=1) + "\n")
            if report is not None:
                write_target(report, "--report", sweep_page(found))
            work.remove()


def numbers(option: str, given: str, kind: "type[Number]") -> "list[Number]":
    """Parse an option's list of numbers. Raises: ValueError, one line."""
    try:
        return [kind(each) for each in given.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {given}: must be numbers, separated by commas") from error


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
        from worker.local_worker import LoadingError, pipeline_of

        sweeps = []
        for each in reports:
            try:
                sweeps.append(kept(json.loads(each.read_bytes())))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{each}: is not JSON ({error})") from error
            except ValueError as error:
                raise ValueError(f"{each}: {error}") from error
        sweep, settings = joined(sweeps), Settings.load()
        try:
            pipeline = pipeline_of(settings, sweep.pipeline)
        except LoadingError as error:
            raise ValueError(f"{reports[0]}: {error}") from error
        if sweep.weights != weights_of(pipeline):
            raise ValueError(f"{reports[0]}: was made with other weights than {sweep.pipeline!r} has now")
        (plan,) = choose([sweep.pipeline], settings.weights)
        path = plan.base.path.parent / f"{sweep.pipeline}{SUFFIX}"
        write_text(path, sweep.model_dump_json(indent=1) + "\n")
        typer.echo(path)
