"""`adm models load` and `adm models unload`: change the pipelines of running workers."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.remote import AsJson, Url, connected

if TYPE_CHECKING:
    from adm_client import Client, PipelineChange

Pipeline = Annotated[str, typer.Argument(help="pipeline, as its stack.json names it")]
Worker = Annotated[str | None, typer.Option("--worker", help="name of one worker; default all live workers")]
LOOK_SECONDS = 0.5


def load(name: Pipeline, worker: Worker = None, url: Url = None, as_json: AsJson = False) -> None:
    """Have running workers load a pipeline of their ADM_WEIGHTS, and wait until they have. Status 1 if one refuses.

    A worker first finishes its jobs in flight, and claims no others until the change is made.
    """
    with connected(url) as client:
        follow(client, client.load_model(name, worker), as_json=as_json)


def unload(name: Pipeline, worker: Worker = None, url: Url = None, as_json: AsJson = False) -> None:
    """Have running workers unload a pipeline, and wait until they have. Status 1 if one refuses.

    Queued jobs of the pipeline wait for another worker that serves it, until they expire.
    """
    with connected(url) as client:
        follow(client, client.unload_model(name, worker), as_json=as_json)


def follow(client: "Client", change: "PipelineChange", *, as_json: bool) -> None:
    """Print each worker's answer when it comes; exit with status 1 if one has not made the change."""
    printed: set[tuple[str, str]] = set()
    while True:
        for each in change.workers:
            if (each.worker, each.status) not in printed and not as_json:
                printed.add((each.worker, each.status))
                typer.echo(f"{each.worker}: {each.status}{f': {each.detail}' if each.detail else ''}")
        if change.is_final:
            break
        time.sleep(LOOK_SECONDS)
        change = client.pipeline_change(change.id)
    if as_json:
        typer.echo(change.model_dump_json())
    if any(each.status != "done" for each in change.workers):
        raise typer.Exit(1)
