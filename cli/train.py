"""`adm train`: one network; `adm train-stack`: all networks of a stack."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.failure import one_line_errors
from cli.stack_measuring import MeasureMinutes, measure_stack

Config = Annotated[Path | None, typer.Argument(help="configuration, .toml or .json; its fields override the preset's")]
Preset = Annotated[str | None, typer.Option(help="named configuration to start from; --presets lists them")]
Images = Annotated[Path | None, typer.Option(help="images to train on: a folder, an idx file or an official .npz")]
Steps = Annotated[int | None, typer.Option(min=1, help="length of the run")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="images per step, over all processes")]
Out = Annotated[Path | None, typer.Option(help="folder of the run; default runs/NAME")]
Minutes = Annotated[float | None, typer.Option(min=0.01, help="stop after this many minutes; the same command resumes")]
AllowChange = Annotated[list[str] | None, typer.Option(help="field that may differ from what the run began with")]
Strict = Annotated[bool, typer.Option("--strict", help="refuse a set of images if one of its files cannot be used")]
Weights = Annotated[
    Path | None, typer.Option(help="network file from which a new run begins, also an official model*.pt")
]
Ema = Annotated[list[Path] | None, typer.Option(help="official ema_*.pt, one for each of the run's averages")]
OptimiserFile = Annotated[Path | None, typer.Option("--optimiser", help="official opt*.pt that belongs to --weights")]
Rewind = Annotated[int | None, typer.Option(min=0, help="go back to the newest snapshot up to this step")]
Cache = Annotated[Path, typer.Option(help="folder where rendered images are kept")]


def train(
    config: Config = None,
    preset: Preset = None,
    images: Images = None,
    out: Out = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    minutes: Minutes = None,
    allow_change: AllowChange = None,
    rewind: Rewind = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print size, cost and time of the run, and end")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the configuration's JSON schema, and end")] = False,
    presets: Annotated[bool, typer.Option("--presets", help="list the presets, and end")] = False,
    strict: Strict = False,
    weights: Weights = None,
    ema: Ema = None,
    optimiser: OptimiserFile = None,
    cache: Cache = Path("data/cache"),
) -> None:
    """Train a network; an interrupted run resumes with the same command.

    Several processes: torchrun --nproc-per-node 2 --no-python adm train ...
    """
    from models.checkpoints.file_form import WeightsError
    from training.config import RunConfig, read_config, read_config_file
    from training.official_files import Beginning
    from training.presets import PRESET_NAMES, read_fields
    from training.session import Request

    if schema:
        typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))
        return
    if presets:
        typer.echo("\n".join(PRESET_NAMES))
        return
    if config is None and preset is None:
        raise typer.BadParameter("give a configuration file or --preset NAME; adm train --presets lists them")
    with one_line_errors(ValueError, OSError, WeightsError):
        changes = _changes(images, steps, batch_size, strict)
        fields = read_fields(read_config_file(config) if config else {}, preset, changes)
        run_config = read_config(fields)
        folder = out or Path("runs") / (preset or (config.stem if config else run_config.kind))
        beginning = Beginning(weights, tuple(ema or ()), optimiser)
        request = Request(folder, allow_change or (), rewind, minutes, beginning, cache)
        if dry_run:
            from training.dry_run import describe

            typer.echo(describe(run_config, cache))
            return
        _train(run_config, request)


def _changes(images: Path | None, steps: int | None, batch_size: int | None, strict: bool) -> dict[str, Any]:
    given = {"steps": steps, "batch_size": batch_size}
    changes: dict[str, Any] = {"optimiser": {name: value for name, value in given.items() if value is not None}}
    if images is not None:
        changes["data"] = {"source": "images", "path": str(images)}
    if strict:
        changes["data"] = {**changes.get("data", {}), "strict": True}
    return changes


def _train(config: Any, request: Any) -> None:
    """Train. Raises: ValueError, whose message names what a failed run has saved."""
    from training.divergence import DivergedError
    from training.session import advice, train
    from training.state import SaveError

    try:
        train(config, request)
    except (DivergedError, SaveError) as error:
        raise ValueError(advice(error, config, request.folder)) from error


def train_stack(
    images: Annotated[Path, typer.Option(help="images to train on: a folder, an idx file or an official .npz")],
    name: Annotated[str, typer.Option(help="name of the stack and of its pipeline")],
    image_size: Annotated[int, typer.Option(min=8, help="edge of the base's images, pixels")] = 32,
    upsampler: Annotated[bool, typer.Option("--upsampler", help="train an upsampler to twice the size too")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="of the base; others by the recipe's proportions")] = None,
    batch_size: BatchSize = None,
    minutes: Minutes = None,
    strict: Strict = False,
    allow_change: AllowChange = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs; default runs/NAME")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder of stacks; default ADM_WEIGHTS")] = None,
    measure_minutes: MeasureMinutes = 5.0,
) -> None:
    """Train the networks of a stack one after the other, and add it to the served stacks."""
    from datasets.survey import class_names
    from jobs.settings import Settings
    from models.checkpoints.network_file import WeightsError
    from training.divergence import DivergedError
    from training.packing import add_stack, check_name
    from training.stack_training import StackRequest, train_parts
    from training.state import SaveError

    with one_line_errors(ValueError, OSError, WeightsError):
        check_name(name)
        has_classes = len(class_names(images)) > 1
        folder, stacks = out or Path("runs") / name, weights or Settings.load().weights
        request = StackRequest(images, folder, image_size, batch_size, steps, minutes, upsampler, has_classes, strict)
        request = replace(request, allow_changes=tuple(allow_change or ()))
        if (stacks / name).exists():
            if not request.has_ended:
                raise ValueError(f"{stacks / name}: there is a stack of this name; give another --name")
            typer.echo(f"{stacks / name}: the stack is complete already")
            return
        try:
            runs = train_parts(request, typer.echo)
        except (DivergedError, SaveError) as error:
            raise ValueError(f"{error}; the last good states are in {folder}") from error
        if runs is not None:
            stack = add_stack(runs, name, stacks)
            measure_stack(stack, runs, measure_minutes)
            typer.echo(f"{stack}: the stack is complete; adm up serves it at its next start")
