"""How a command ends that cannot do what was asked: one line, status 2 for a wrong setting and 1 for the rest."""

import contextlib
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn the errors a user can mend into their one line; anything else is a bug and keeps its traceback."""
    from jobs.contract.errors import SETTINGS_STATUS, SettingsError

    try:
        yield
    except SettingsError as error:
        typer.echo(f"adm: {error}", err=True)
        raise typer.Exit(SETTINGS_STATUS) from error
    except kinds as error:
        typer.echo(f"adm: {error}", err=True)
        raise typer.Exit(1) from error


def tell_doubt(line: str) -> None:
    """One line about weights that look wrong; the command goes on."""
    typer.echo(f"adm: weights look wrong: {line} (docs/self-check.md)", err=True)
