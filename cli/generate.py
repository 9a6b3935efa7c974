"""`adm generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.progress import progress_bar
from cli.remote import AsJson, Url, class_names, connected, model_names

if TYPE_CHECKING:
    from adm_client import Job

FAILED_STATUS, STOPPED_STATUS = 1, 130


ClassLabel = Annotated[
    str | None, typer.Argument(help="name or index; none for no class", autocompletion=class_names, metavar="CLASS")
]
ModelName = Annotated[str | None, typer.Option(help="pipeline; default the service's", autocompletion=model_names)]
Scale = Annotated[float | None, typer.Option(help="default: the pipeline's; 0 is off")]
Eta = Annotated[float | None, typer.Option(help="of ddim")]
Upsample = Annotated[bool | None, typer.Option(help="default: yes if the pipeline has an upsampler")]
Priority = Annotated[str | None, typer.Option(help="low, normal or high; default normal")]


def generate(
    class_label: ClassLabel = None,
    out: Annotated[Path, typer.Option(help="folder for the PNGs")] = Path(),
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=64, help="images")] = 1,
    model: ModelName = None,
    guidance_scale: Scale = None,
    steps: Annotated[int | None, typer.Option(help="default: the pipeline's")] = None,
    sampler: Annotated[str | None, typer.Option(help="default: the pipeline's")] = None,
    eta: Eta = None,
    seed: Annotated[int | None, typer.Option(min=0, help="default: drawn at random; the PNG contains it")] = None,
    upsample: Upsample = None,
    priority: Priority = None,
    url: Url = None,
    as_json: AsJson = False,
    local: Annotated[bool, typer.Option("--local", help="on this machine's device, without a service")] = False,
) -> None:
    """Make images, show their progress, and write them as ID-INDEX.png; with --local, SEED-INDEX.png."""
    given = {
        "model": model, "guidance_scale": guidance_scale, "steps": steps, "sampler": sampler, "eta": eta, "seed": seed,
        "upsample": upsample,
    }  # fmt: skip
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None} | {"n": n}
    if class_label is not None:
        fields["class_label"] = class_of(class_label)
    if local:
        refuse_beside_local({"--url": url, "--priority": priority})
        make_locally(fields, out, as_json)
        return
    if priority is not None:
        fields["priority"] = priority
    with connected(url) as client:
        job = client.submit(**fields)
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


def refuse_beside_local(options: dict[str, str | None]) -> None:
    """Exit with one line if an option is given that needs a service."""
    for name, value in options.items():
        if value is not None:
            typer.echo(f"adm: {name}: leave it out with --local, which uses no service", err=True)
            raise typer.Exit(FAILED_STATUS)


def make_locally(fields: dict[str, Any], out: Path, as_json: bool) -> None:
    """Make a job in this process, with the output of a service's job."""
    from cli.generate_local import generate_local  # imported here: torch takes seconds

    try:
        job, paths = generate_local(fields, out)
    except KeyboardInterrupt:
        typer.echo(f"adm: stopped; the images that were finished are in {out}", err=True)
        raise typer.Exit(STOPPED_STATUS) from None
    if as_json:
        typer.echo(job.model_dump_json())
    for path in paths:
        typer.echo(path, err=as_json)


def class_of(text: str) -> int | str | None:
    """Parse a class: index, name, or None for "none"."""
    return int(text) if text.isdecimal() else None if text == "none" else text


def follow(job: "Job") -> None:
    """Show a job's progress until it ends."""
    with progress_bar(str(job.status)) as show:
        for event in job:
            if event.progress is not None:
                show(event.progress.stage, event.progress.fraction)
            elif event.kind != "preview":
                show(event.kind)


def report(job: "Job") -> None:
    """Exit with a line and a status unless the job is completed."""
    from adm_client import Status

    if job.status is not Status.COMPLETED:
        reason = job.state.error.detail if job.state.error is not None else f"it is {job.status}"
        typer.echo(f"adm: job {job.id}: {reason}", err=True)
        raise typer.Exit(FAILED_STATUS)
