"""`adm runs`: training runs, read from their folders."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.failure import one_line_errors
from vocabulary.counts import counted

app = typer.Typer(help="Training runs: list, show, compare, follow.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="folder of a run")]
FOLLOW_SECONDS = 1.0


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="folder that contains the runs, at any depth")] = Path("runs"),
) -> None:
    """List every run below a folder, with its progress and newest figures."""
    from rich.console import Console
    from rich.table import Table

    from runfolder.summary import find_runs

    table = Table("run", "kind", "step", "of", "loss", "images/s")
    for run in find_runs(folder):
        loss, rate = (run.last.get(name) for name in ("loss", "images_per_second"))
        shown = [f"{value:.4g}" if value is not None else "" for value in (loss, rate)]
        table.add_row(str(run.folder), run.info["kind"], str(run.step), str(run.steps), *shown)
    Console().print(table)


@app.command()
def show(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """Show a run's data, machine, configuration and newest figures."""
    from runfolder.folder import RunFolderError
    from runfolder.summary import read_summary

    with one_line_errors(RunFolderError):
        run = read_summary(folder)
    whole = {"step": run.step, "figures": run.last, **run.info, "config": run.config}
    if as_json:
        typer.echo(json.dumps(whole, indent=1))
        return
    data, start = run.info["data"], run.info["starts"][-1]
    typer.echo(
        f"{run.info['kind']}, step {run.step} of {run.steps}, started {counted(len(run.info['starts']), 'time')}"
    )
    typer.echo(
        f"data: {counted(data['images'], 'image')}, {data['held_out']} held out, "
        f"{counted(len(data['class_names']), 'class')}"
    )
    torch = start["versions"]["torch"]
    typer.echo(
        f"machine: {start['device']} in {start['precision']}, {counted(start['processes'], 'process')}, torch {torch}"
    )
    for name, value in run.last.items():
        typer.echo(f"  {name}: {value:.6g}")


@app.command()
def compare(one: Folder, other: Annotated[Path, typer.Argument(help="folder of another run")]) -> None:
    """Print the fields in which two runs' configurations differ, and their figures at the last common step."""
    from runfolder.fields import flatten
    from runfolder.folder import RunFolderError
    from runfolder.summary import read_summary

    with one_line_errors(RunFolderError):
        runs = read_summary(one), read_summary(other)
    first, second = (flatten(run.config) for run in runs)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            typer.echo(f"{name}: {first.get(name)} | {second.get(name)}")
    figures = [{line["step"]: line for line in run.lines if "loss" in line} for run in runs]
    shared = sorted(figures[0].keys() & figures[1].keys())
    if not shared:
        typer.echo("the runs have figures of no common step")
        return
    typer.echo(f"at step {shared[-1]}:")
    ours, theirs = (each[shared[-1]] for each in figures)
    for name in ours.keys() & theirs.keys() - {"step"}:
        typer.echo(f"  {name}: {ours[name]:.6g} | {theirs[name]:.6g}")


@app.command()
def follow(folder: Folder) -> None:
    """Print a run's figures as they come, until the run's last step."""
    from runfolder.folder import RunFolderError
    from runfolder.summary import read_summary

    shown = 0
    while True:
        with one_line_errors(RunFolderError):
            run = read_summary(folder)
        for line in run.lines[shown:]:
            typer.echo(_one_line(line))
        shown = len(run.lines)
        if run.step >= run.steps:
            return
        time.sleep(FOLLOW_SECONDS)


def _one_line(line: dict[str, float]) -> str:
    plain = {name: value for name, value in line.items() if name != "step" and not name[:-1].endswith("_q")}
    return f"step {line['step']:.0f}  " + "  ".join(f"{name} {value:.4g}" for name, value in plain.items())
