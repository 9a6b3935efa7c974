"""The `adm` command line. Importing it is quick: each command imports its program in its own body."""

import io
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cli import (
    config,
    data,
    doctor,
    evaluate,
    generate,
    grid,
    jobs,
    keys,
    models,
    pictures,
    runs,
    sample,
    samplers,
    service,
    train,
    up,
    webhooks,
    worker,
)

# Spins of OpenMP's threads while they wait for each other in a shared operation, as in loading, large networks and
# training. By default they spin so long that other programs become very slow. No spinning at all made a step a tenth
# slower when its threads shared operations.
SPIN_COUNT = 3000

app = typer.Typer(
    name="adm",
    help="Make images with the ADM diffusion models. Settings are ADM_ variables; adm config prints them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a plain traceback fits in a log, and shows no locals, such as passwords
)


def print_version(asked: bool) -> None:
    if asked:
        print(f"adm-serve {version('adm-serve')}")
        raise typer.Exit


@app.callback()
def settle_threads(
    _: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version, and end")
    ] = False,
) -> None:
    """Set how OpenMP's threads wait, unless the user has set it, and how standard output escapes characters.

    This comes before any command, because torch reads the variables when it is imported. Standard output escapes
    characters that its encoding lacks, such as bytes of file names that are not UTF-8.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


app.command("up")(up.up)
app.command("demo")(up.demo)
app.command("service")(service.service)
app.command("worker")(worker.worker)
app.command("config")(config.config)
app.command("doctor")(doctor.doctor)
app.command("generate")(generate.generate)
app.command("grid")(grid.grid)
app.command("jobs")(jobs.jobs)
app.command("watch")(jobs.watch)
app.command("cancel")(jobs.cancel)
app.command("sample")(sample.sample)
app.command("samplers")(samplers.samplers)
app.command("encode")(pictures.encode)
app.command("reconstruct")(pictures.reconstruct)
app.command("interpolate")(pictures.interpolate)
app.command("train")(train.train)
app.command("train-stack")(train.train_stack)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
