"""`adm up` and `adm demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.failure import one_line_errors


def up() -> None:
    """Run Redis, the service and one worker here until Ctrl-C."""
    from jobs.settings import Settings
    from standalone.embedded import up as run
    from standalone.supervisor import StartError

    with one_line_errors(StartError):
        run(Settings.load())


def demo(
    out: Annotated[Path, typer.Option(help="folder of the images, the contact sheet and the report")] = Path("demo"),
) -> None:
    """Start a Redis, a service and a worker for one image of each class; status 0 only if every image arrived."""
    from jobs.settings import Settings
    from standalone.demo import run_demo
    from standalone.supervisor import StartError

    with one_line_errors(StartError):
        if not run_demo(Settings.load(), out):
            raise typer.Exit(1)
