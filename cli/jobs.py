"""`adm jobs`, `adm watch`, `adm cancel`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.generate import follow, report
from cli.remote import AsJson, Url, connected

if TYPE_CHECKING:
    from adm_client import JobState

JobId = Annotated[str, typer.Argument(help="as adm jobs lists it", metavar="JOB")]


def jobs(
    status: Annotated[str | None, typer.Option(help="queued, in_progress, completed, failed, cancelled ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with connected(url) as client:
        for each in client.jobs(status, limit).data:
            typer.echo(each.model_dump_json() if as_json else line_of(each))


def watch(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Follow a job to its end; with --json print its events, one per line. Status 0 if it is completed."""
    import json

    with connected(url) as client:
        job = client.job(job_id)
        if as_json:
            for event in job:
                typer.echo(json.dumps({"event": event.kind, "id": event.id, "data": event.data}))
        else:
            follow(job)
            typer.echo(line_of(job.refresh().state))
        report(job)


def cancel(
    job_ids: Annotated[list[str], typer.Argument(help="as adm jobs lists them", metavar="JOB...")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: queued ones at once, running ones between two steps."""
    with connected(url) as client:
        for each in job_ids:
            state = client.job(each).cancel().state
            typer.echo(state.model_dump_json() if as_json else line_of(state))


def line_of(job: "JobState") -> str:
    """One line about a job."""
    what = (
        ""
        if job.request is None
        else f"{job.request.model} {job.request.kind} n={job.request.n} seed={job.request.seed}"
    )
    place = f" {job.queue.position} before it" if job.queue is not None else ""
    return f"{job.id}  {job.status}{place}  {job.progress.fraction:.0%}  {what}"
