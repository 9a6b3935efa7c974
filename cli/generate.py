"""`adm generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failure import one_line_errors
from cli.remote import AsJson, Url, class_names, connected, model_names

if TYPE_CHECKING:
    from adm_client import Job

FAILED_STATUS, STOPPED_STATUS = 1, 130


def generate(
    class_label: Annotated[
        str | None,
        typer.Argument(help="name or index; none for no class", autocompletion=class_names, metavar="CLASS"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the PNGs")] = Path(),
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=64, help="images")] = 1,
    model: Annotated[
        str | None, typer.Option(help="pipeline; default the service's", autocompletion=model_names)
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="default the pipeline's; 0 is off")] = None,
    steps: Annotated[int | None, typer.Option(help="default the pipeline's")] = None,
    sampler: Annotated[str | None, typer.Option(help="default the pipeline's")] = None,
    eta: Annotated[float | None, typer.Option(help="of ddim")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="default drawn, and in the PNG")] = None,
    upsample: Annotated[bool | None, typer.Option(help="default: where there is an upsampler")] = None,
    priority: Annotated[str, typer.Option(help="low, normal or high")] = "normal",
    url: Url = None,
    as_json: AsJson = False,
    local: Annotated[bool, typer.Option("--local", help="on this machine's device, without a service")] = False,
) -> None:
    """Make images, show how far they are, and write them as ID-INDEX.png."""
    given = {
        "model": model, "guidance_scale": guidance_scale, "steps": steps, "sampler": sampler, "eta": eta, "seed": seed,
        "upsample": upsample,
    }  # fmt: skip
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None} | {"n": n}
    if class_label is not None:
        fields["class_label"] = class_of(class_label)
    if local:
        make_here(fields, out)
        return
    with connected(url) as client:
        job = client.submit(**fields | {"priority": priority})
        try:
            follow(job)
        except KeyboardInterrupt:
            job.cancel()
            typer.echo(f"adm: job {job.id} is cancelled", err=True)
            raise typer.Exit(STOPPED_STATUS) from None
        if as_json:
            typer.echo(job.state.model_dump_json())
        report(job)
        for path in job.save(out):
            typer.echo(path, err=as_json)


def class_of(text: str) -> int | str | None:
    """A class as it is typed."""
    return int(text) if text.isdecimal() else None if text == "none" else text


def follow(job: "Job") -> None:
    """Show a job's progress until it ends; a line a change of state where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(str(job.status), total=1.0)
        for event in job:
            if event.progress is not None:
                bar.update(task, description=event.progress.stage, completed=event.progress.fraction)
            elif event.kind != "preview":
                bar.update(task, description=event.kind)


def report(job: "Job") -> None:
    """End with a line and a status unless the job is completed."""
    from adm_client import Status

    if job.status is not Status.COMPLETED:
        reason = job.state.error.detail if job.state.error is not None else f"it is {job.status}"
        typer.echo(f"adm: job {job.id}: {reason}", err=True)
        raise typer.Exit(FAILED_STATUS)


def make_here(fields: dict[str, Any], out: Path) -> None:
    """The same images in this process, as SEED-INDEX.png."""
    import secrets

    from PIL import Image

    from jobs import logs
    from jobs.contract.errors import InvalidRequestError
    from jobs.contract.request import DRAWN_SEED_BELOW, JobRequest
    from jobs.contract.resolution import resolve
    from jobs.settings import Settings
    from worker import alone

    with one_line_errors(InvalidRequestError, *alone.REFUSALS):
        settings = Settings.load()
        quiet = settings.model_copy(
            update={"log_level": "warning", "pipelines": (fields.get("model") or settings.default_model,)}
        )
        logs.configure(quiet)
        pipeline = alone.pipeline_of(quiet, quiet.pipelines[0])
        request = resolve(JobRequest.model_validate(fields), pipeline, lambda: secrets.randbelow(DRAWN_SEED_BELOW))
        typer.echo(f"loading {pipeline.id} ...", err=True)
        worker = alone.Alone(quiet, alone.devices(quiet.device)[0])
        worker.add("here", request, {})
        size = (pipeline.stages if request.upsample else pipeline.stages[:1])[-1].image_size
        out.mkdir(parents=True, exist_ok=True)
        while (finished := worker.step()) is not None:
            for _, index, pixels in finished:
                path = out / f"{request.seed}-{index}.png"
                Image.frombytes("RGB", (size, size), pixels).save(path)
                typer.echo(path)
