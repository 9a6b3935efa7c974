"""Measures the settings of a packed stack and writes them, for `adm models add` and `adm train-stack`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

MeasureMinutes = Annotated[
    float,
    typer.Option(
        "--measure-minutes", min=0, help="time for measuring eps_scale, guidance scale and sampler; 0: do not measure"
    ),
]


def measure_stack(folder: Path, runs: Sequence[Path], minutes: float) -> None:
    """Measure a stack that was packed from these runs. Raises: WeightsError, ValueError, OSError."""
    from evaluation.tuning import Tuning
    from evaluation.tuning_report import write_tuning
    from training.config import ConfigError
    from training.packing import base_of
    from training.reference_images import reference_images

    if minutes == 0:
        return
    typer.echo(f"{folder}: measuring the default settings of its pipelines (--measure-minutes {minutes:g})")
    try:
        reference = reference_images(base_of(runs))
    except ConfigError as error:
        typer.echo(f"adm: the stack is measured without real images: {error}", err=True)
        reference = None
    write_tuning(folder, *Tuning(folder, reference, 60 * minutes, typer.echo).measure())
