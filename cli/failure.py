"""Ends failed commands with one line, and with status 2 for a wrong setting or 1 otherwise."""

import contextlib
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that a user can correct into one line; other errors are bugs and keep their traceback."""
    from jobs.contract.errors import SETTINGS_STATUS, SettingsError

    try:
        yield
    except SettingsError as error:
        typer.echo(f"adm: {error}", err=True)
        raise typer.Exit(SETTINGS_STATUS) from error
    except kinds as error:
        typer.echo(f"adm: {one_line(error)}", err=True)
        raise typer.Exit(1) from error


def one_line(error: Exception) -> str:
    """The text of an error; for a file, the file's name and the reason, without the error number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def print_doubt(line: str) -> None:
    """Print one line about doubtful weights; the command continues."""
    typer.echo(f"adm: weights look wrong: {line} (docs/self-check.md)", err=True)
