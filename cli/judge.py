"""`adm judge`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.failure import one_line_errors, print_doubt


def judge(
    folder: Annotated[Path, typer.Argument(help="folder of the stack, its stack.json and judge.safetensors")] = Path(
        "weights/demo"
    ),
) -> None:
    """Measure the demo stack with the judge and write judge.json beside its weights."""
    from evaluation.demo_report import write_report
    from models.checkpoints.network_file import WeightsError

    with one_line_errors(WeightsError):
        path = write_report(folder, print_doubt)
    typer.echo(f"{path}\n{path.read_text()}")
