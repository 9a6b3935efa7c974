"""`adm config`."""

import typer

from cli.failure import one_line_errors


def config() -> None:
    """Print every setting with its value and where the value came from."""
    from jobs.settings import Settings

    with one_line_errors():
        for variable, value, source, description in Settings.load().sources():
            typer.echo(f"{variable}={value}  # {source}: {description}")
