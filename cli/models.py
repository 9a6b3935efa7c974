"""`adm models`: lists, fetches, verifies, converts and inspects official checkpoints, and adds stacks."""

import contextlib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors
from cli.open_flag_options import takes_open_flags
from cli.pipeline_changes import load, unload
from cli.stack_measuring import MeasureMinutes, measure_stack
from vocabulary.counts import counted
from vocabulary.precisions import Precision

if TYPE_CHECKING:
    from models.checkpoints.networks_in_files import Network
    from models.checkpoints.open_flags import Answers
    from models.checkpoints.presets import Preset

app = typer.Typer(
    help="Checkpoints: list, fetch, verify, convert, inspect. Stacks: add; load and unload in running workers.",
    no_args_is_help=True,
)
app.command()(load)
app.command()(unload)

Name = Annotated[str, typer.Argument(help="a checkpoint or pipeline, as adm models list names it")]
File = Annotated[Path, typer.Argument(help="a checkpoint, .pt or .safetensors")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="default: the one the file is named after")]
Where = Annotated[
    str | None,
    typer.Option(
        "--weights-at", help="which of several networks in the file, as adm models inspect names their places"
    ),
]


@app.command("list")
def list_presets() -> None:
    """List the official checkpoints and their pipelines."""
    from rich.console import Console

    from cli.preset_tables import checkpoint_table, pipeline_table

    console = Console()
    console.print(checkpoint_table())
    console.print(pipeline_table())


def named_presets(name: str) -> "tuple[Preset, ...]":
    """The presets of a checkpoint or a pipeline, by name; exits with one line for an unknown name."""
    from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS

    if name in OFFICIAL_PIPELINES:
        return tuple(PRESETS[each] for each in OFFICIAL_PIPELINES[name].files)
    if name not in PRESETS:
        known = ", ".join([*PRESETS, *OFFICIAL_PIPELINES])
        typer.echo(f"adm: no preset and no pipeline is named {name!r}; there are {known}", err=True)
        raise typer.Exit(1)
    return (PRESETS[name],)


@app.command()
def add(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs: a base, and a classifier, upsampler and judge")],
    name: Annotated[str, typer.Option(help="name of the stack and of its pipeline")],
    dtype: Annotated[Precision, typer.Option(help="of the weights in the files")] = "fp16",
    width: Annotated[float | None, typer.Option(help="relative width of the power-function average to pack")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder of stacks; default ADM_WEIGHTS")] = None,
    measure_minutes: MeasureMinutes = 5.0,
) -> None:
    """Pack the averaged weights of training runs into a stack, which adm up serves at its next start.

    Its default settings are measured; the card describes the measurement.
    """
    from jobs.settings import Settings
    from models.checkpoints.network_file import WeightsError
    from training.packing import add_stack

    with one_line_errors(WeightsError, ValueError, OSError):
        folder = add_stack(runs, name, weights or Settings.load().weights, dtype=dtype, width=width)
        measure_stack(folder, runs, measure_minutes)
        for path in sorted(folder.iterdir()):
            typer.echo(f"{path}  {path.stat().st_size:,} bytes")
        typer.echo(f"{folder}: adm up serves it at its next start; running workers, after adm models load {name}")


@app.command()
def show(name: Name) -> None:
    """Show a checkpoint, or each of a pipeline: flags, configuration, sampling settings, published figures."""
    from rich.console import Console

    from cli.preset_tables import preset_table

    console = Console()
    for preset in named_presets(name):
        console.print(preset_table(preset))


@app.command()
def fetch(
    name: Name,
    source: Annotated[str | None, typer.Option("--from", help="a mirror: the file's address, or its folder's")] = None,
    to: Annotated[Path | None, typer.Option(help="folder; default official/ in ADM_WEIGHTS")] = None,
) -> None:
    """Fetch a checkpoint, or all of a pipeline; a later run resumes an interrupted one.

    Sizes and SHA-256 are recorded.
    """
    from jobs.settings import Settings
    from models.checkpoints.fetch import FetchError
    from models.checkpoints.presets import OFFICIAL_FOLDER, OFFICIAL_URL
    from models.checkpoints.provenance import ChangedFileError

    presets, base = named_presets(name), source or OFFICIAL_URL
    if base.endswith(".pt") and len(presets) > 1:
        typer.echo(f"adm: --from: {name} is {len(presets)} files; give the address of their folder", err=True)
        raise typer.Exit(1)
    with one_line_errors(FetchError, ChangedFileError, OSError):
        folder = to or Settings.load().weights / OFFICIAL_FOLDER
        for preset in presets:
            target = folder / preset.file
            new = fetch_under_a_bar(base if base.endswith(".pt") else f"{base.rstrip('/')}/{preset.file}", target)
            there = "" if new else ", there already"
            typer.echo(f"{target}  {target.stat().st_size:,} bytes{there}; next: adm models verify")


def fetch_under_a_bar(url: str, target: Path) -> bool:
    """Fetch a file with a progress bar; False if it existed already. Raises: the errors of `fetch`."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from models.checkpoints.fetch import fetch as fetch_file

    columns = TextColumn(target.stem), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(target.stem, total=None)
        return fetch_file(url, target, lambda done, total: progress.update(task, completed=done, total=total))


@app.command()
def verify(path: File, preset: PresetOption = None, weights_at: Where = None) -> None:
    """Compare every key, shape, dtype and value of a checkpoint with its preset, and the file with its recorded hash.

    Without a preset it is compared with its own metadata, or with the network inferred from its keys.
    """
    from models.checkpoints.tensor_file import read_network
    from models.checkpoints.verify import expected
    from models.checkpoints.verify import verify as verify_file

    with wrong_answers(path):
        network = read_network(path, weights_at)
        name, config = expected(path, preset, network.tensors)
        lines = verify_file(path, network.tensors, config)
    print_place(network)
    for line in lines:
        typer.echo(f"{path.name}: {line}")
    typer.echo(
        f"{path.name}: is {name}" if not lines else f"{path.name}: {counted(len(lines), 'difference')} from {name}"
    )
    if lines:
        raise typer.Exit(1)


@app.command()
@takes_open_flags
def convert(
    path: File,
    out: Annotated[Path, typer.Argument(help="file to write, .safetensors")],
    dtype: Annotated[Precision, typer.Option(help="of the values written")] = "fp32",
    preset: PresetOption = None,
    weights_at: Where = None,
    *,
    answers: "Answers",
) -> None:
    """Write a checkpoint as safetensors, without a second copy in memory.

    With a preset or the training flags, the file also contains the configuration, so that a stack only has to name it.
    """
    from models.checkpoints.verify import convert as convert_file
    from models.checkpoints.verify import preset_of
    from models.networks.precision import DTYPES

    if preset and (given := answers.given()):
        typer.echo(f"adm: --preset settles {', '.join(given)}; give one or the other", err=True)
        raise typer.Exit(1)
    with wrong_answers(path):
        named = None if answers.given() else preset_of(path, preset)
        network = convert_file(path, out, DTYPES[dtype], named, answers, weights_at)
    print_place(network)
    contents = (
        ""
        if named is not None or answers.given()
        else ", tensors only, without a configuration, because no preset or flags were given"
    )
    typer.echo(f"{out}  {out.stat().st_size:,} bytes{contents}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="a stack's folder, or a network file with a configuration")],
    out: Annotated[Path, typer.Argument(help="folder for NAME.pt")],
) -> None:
    """Write networks for the official scripts, and print the flags that those need."""
    from models.checkpoints.export import export as export_networks

    with wrong_answers(source):
        for exported in export_networks(source, out):
            for line in exported.lines():
                typer.echo(line)


@app.command()
@takes_open_flags
def inspect(
    path: File,
    weights_at: Where = None,
    *,
    answers: "Answers",
) -> None:
    """Infer a network from its keys and shapes, and show the known values of flags that these leave open.

    Flags given here override the file's metadata and the stack.json beside it.
    """
    from rich.console import Console

    from cli.inspection_tables import tables_of
    from models.checkpoints.open_flags import Answers, resolve
    from models.checkpoints.stated_flags import stated_answers
    from models.checkpoints.tensor_file import read_network
    from models.checkpoints.verify import shapes_of

    with wrong_answers(path):
        network = read_network(path, weights_at)
        shapes = shapes_of(network.tensors)
        sources = {"given here": answers} | stated_answers(path)
        resolved = resolve(shapes, reduce(Answers.over, sources.values()))
    console = Console()
    for table in tables_of(path, network, resolved, sources):
        console.print(table)


def print_place(network: "Network") -> None:
    """Print to stderr which of several networks in a file is used."""
    if network.choice:
        typer.echo(f"adm: {network.choice} (--weights-at)", err=True)


@contextlib.contextmanager
def wrong_answers(path: Path) -> Iterator[None]:
    """Print one line for each wrong flag or unusable file, and exit."""
    from models.checkpoints.inspection import NotAdmError
    from models.checkpoints.open_flags import AnswersError
    from models.checkpoints.presets import PRESETS
    from models.checkpoints.tensor_file import WeightsError
    from models.checkpoints.verify import DifferentNetworkError

    with one_line_errors(WeightsError, OSError):
        try:
            yield
        except NotAdmError as error:
            raise WeightsError(path.name, str(error)) from error
        except DifferentNetworkError as error:
            option = f" --preset {error.name}" if error.name in PRESETS else ""
            more = len(error.lines) - 1
            others = f" (and {more} more: adm models verify {error.source}{option})" if more else ""
            raise WeightsError(path.name, f"is not {error.name}: {error.lines[0]}{others}") from error
        except AnswersError as error:
            for line in error.lines:
                typer.echo(f"adm: {line}", err=True)
            raise typer.Exit(1) from error
