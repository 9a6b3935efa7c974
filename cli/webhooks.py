"""`adm webhooks`: pending deliveries and dead letters."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.failure import one_line_errors
from vocabulary.counts import counted

if TYPE_CHECKING:
    from jobs.queue.webhooks import Webhooks

T = TypeVar("T")

app = typer.Typer(help="Deliveries of webhooks.", no_args_is_help=True)


@app.command("list")
def list_deliveries(
    pending: Annotated[
        bool, typer.Option("--pending", help="list pending deliveries instead of the dead letters")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """List the dead letters, or with --pending the deliveries that will be tried again."""
    for each in connected(lambda webhooks: webhooks.pending() if pending else webhooks.dead()):
        fields = asdict(each) | {"type": each.type}
        line = f"{each.id}  {each.type}  {counted(each.attempts, 'attempt')}  {each.error}"
        typer.echo(json.dumps(fields) if as_json else line)


@app.command()
def retry(
    ids: Annotated[list[str] | None, typer.Argument(help="as adm webhooks list gives them")] = None,
    every: Annotated[bool, typer.Option("--all", help="all dead letters")] = False,
) -> None:
    """Retry deliveries that were given up."""
    if every == bool(ids):
        raise typer.BadParameter("give ids, or --all")
    revived = connected(lambda webhooks: webhooks.revive([each.id for each in webhooks.dead()] if every else ids or []))
    typer.echo(f"{len(revived)} will be tried again")
    if ids and len(revived) < len(ids):
        typer.echo(f"adm: unknown: {', '.join(sorted(set(ids) - set(revived)))}", err=True)
        raise typer.Exit(1)


def connected(call: "Callable[[Webhooks], T]") -> T:
    """The result of a call on the deliveries in the settings' Redis."""
    from redis.exceptions import RedisError

    from jobs.queue.webhooks import Webhooks
    from jobs.redis.server import connect_redis
    from jobs.settings import Settings

    with one_line_errors(RedisError), connect_redis(Settings.load().redis_address) as redis:
        return call(Webhooks(redis))
