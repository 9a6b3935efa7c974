"""`adm keys`: keys of the service's callers."""

import contextlib
import getpass
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from jobs.callers.keyring import KeyRecord, KeyStore, NewKey

app = typer.Typer(
    help="Keys of callers: create, list, revoke, rotate. A change is in force when its command returns.",
    no_args_is_help=True,
)
Which = Annotated[str, typer.Argument(metavar="NAME", help="name or id of the key")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="name of the caller, for people to read")],
    role: Annotated[str, typer.Option(help="user: its own jobs; operator: everything; metrics: only /metrics")],
    weight: Annotated[
        float, typer.Option(min=0.01, max=100, help="share of the turns, relative to other callers")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, only this once. After the first key, every caller needs one."""
    from jobs.contract.caller import Role
    from jobs.contract.errors import KeyringError

    with key_store() as store:
        if role not in list(Role):
            raise KeyringError(f"--role: {role!r} must be one of {', '.join(Role)}")
        made = store.create(name, Role(role), weight)
        log_change("create_key", made.record)
    show_new(made, as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the records of all keys, including revoked ones, without the keys themselves."""
    from rich.console import Console
    from rich.table import Table

    with key_store() as store:
        records = store.records()
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json", exclude={"sha256"}) for each in records], indent=1))
        return
    table = Table("id", "name", "role", "weight", "state")
    for each in records:
        state = "revoked" if each.revoked_at is not None else "in force"
        table.add_row(each.id, each.name, each.role, f"{each.weight:g}", state)
    Console().print(table)


@app.command()
def revoke(key: Which) -> None:
    """Revoke a key. Its caller's jobs stay, for operators. Without a remaining key the service refuses all callers."""
    with key_store() as store:
        record = store.revoke(key)
        log_change("revoke_key", record)
    typer.echo(f"revoked {record.name} ({record.id})")


@app.command()
def rotate(key: Which, as_json: AsJson = False) -> None:
    """Replace a caller's key and print the new one. The caller keeps its jobs; the old key is invalid at once."""
    with key_store() as store:
        made = store.rotate(key)
        log_change("rotate_key", made.record)
    show_new(made, as_json)


@contextlib.contextmanager
def key_store() -> Iterator["KeyStore"]:
    """The key store in the Redis of the settings."""
    from redis.exceptions import RedisError

    from jobs import logs
    from jobs.callers.keyring import KeyStore
    from jobs.contract.errors import KeyringError
    from jobs.redis.server import connect_redis
    from jobs.settings import Settings

    with one_line_errors(KeyringError):
        settings = Settings.load()
        logs.configure(settings)
        try:
            with connect_redis(settings.redis_address) as redis:
                yield KeyStore(redis)
        except RedisError as error:
            raise KeyringError(
                f"ADM_REDIS_URL: Redis cannot be reached ({error}); keys are kept there. adm up starts one"
            ) from error


def log_change(action: str, record: "KeyRecord") -> None:
    """Log a change of a key, in the form of the service's audit log."""
    import structlog

    who = f"cli:{getpass.getuser()}"
    structlog.get_logger("audit").info("audit", caller=who, action=action, target=record.id, outcome="done")


def show_new(made: "NewKey", as_json: bool) -> None:
    if as_json:
        shown = {"key": made.key, "id": made.record.id, "name": made.record.name, "role": made.record.role}
        typer.echo(json.dumps(shown))
        return
    typer.echo(f"key of {made.record.name} ({made.record.id}), shown this once:", err=True)
    typer.echo(made.key)
