"""Common parts of commands that call a service."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from adm_client import Client

Url = Annotated[
    str | None, typer.Option("--url", help="address of the service; default: that of ADM_HOST and ADM_PORT")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the service's answer, one JSON object a line")]
COMPLETION_SECONDS = 1.0


@contextlib.contextmanager
def connected(url: str | None) -> Iterator["Client"]:
    """A client of the given service, or of the service at ADM_HOST and ADM_PORT; its errors exit with one line."""
    from adm_client import Client, ClientError, Patience, UnreachableError
    from jobs.settings import Settings
    from standalone.embedded import page_address

    with one_line_errors(ClientError):
        settings = Settings.load()
        key = None if settings.api_key is None else settings.api_key.get_secret_value()

        def note(waited_for: str) -> None:
            if waited_for:
                typer.echo(f"adm: waiting: {waited_for}", err=True)

        address = url or page_address(settings)
        with Client(address, key, patience=Patience(silent_seconds=0)) as once:
            try:
                once.models()
            except UnreachableError as error:  # only for the first call; later calls wait for a service that restarts
                raise UnreachableError(
                    f"no service answers at {address}; adm up starts one, --url names one"
                ) from error
        with Client(address, key, on_wait=note) as client:
            yield client


def model_names(incomplete: str) -> list[str]:
    """Shell completion: pipelines of the service at ADM_HOST and ADM_PORT."""
    return [name for name, _ in known_models() if name.startswith(incomplete)]


def class_names(incomplete: str) -> list[str]:
    """Shell completion: classes of all these pipelines."""
    names = {each for _, classes in known_models() for each in classes}
    return sorted(each for each in names if each.startswith(incomplete))


def known_models() -> list[tuple[str, list[str]]]:
    """Pipelines and the names of their classes; empty if no service answers at once."""
    from adm_client import Client, ClientError, Patience

    with (
        contextlib.suppress(ClientError),
        Client(timeout=COMPLETION_SECONDS, patience=Patience(silent_seconds=0, busy_seconds=0)) as client,
    ):
        return [(model.id, [each.name for each in model.classes]) for model in client.models()]
    return []
