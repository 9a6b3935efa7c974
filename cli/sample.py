"""`adm sample`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from bulk.local import Local
    from bulk.source import Source
    from jobs.settings import Settings


def sample(
    out: Annotated[Path, typer.Option(help="samples.npz in the official layout, or a folder of PNGs")],
    count: Annotated[
        int | None, typer.Option(min=1, help="images; default: the lines of a file given as --classes")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="uniform (random; default), balanced (all in turn), none, a list (0,3,torus: in turn), or a file"
        ),
    ] = None,
    base_samples: Annotated[
        Path | None, typer.Option(help="official .npz of images to enlarge, in place of the base stage's")
    ] = None,
    model: Annotated[str | None, typer.Option(help="pipeline; default ADM_DEFAULT_MODEL")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="default: the pipeline's")] = None,
    steps: Annotated[int | None, typer.Option(help="default: the pipeline's")] = None,
    sampler: Annotated[str | None, typer.Option(help="default: the pipeline's")] = None,
    eta: Annotated[float | None, typer.Option(help="only for ddim: 0 draws no noise, 1 as much as ddpm")] = None,
    time_grid: Annotated[str | None, typer.Option(help="official, even, uniform, logsnr or karras")] = None,
    thresholding: Annotated[str | None, typer.Option(help="of the predicted x_0: clip, dynamic, none")] = None,
    guidance_interval: Annotated[
        tuple[int, int] | None, typer.Option(help="guide only at timesteps from A to B", metavar="A B")
    ] = None,
    guidance_schedule: Annotated[str | None, typer.Option(help="constant or entropy; default: the pipeline's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="image i is a function of the seed and i")] = 0,
    upsample: Annotated[bool | None, typer.Option(help="default: yes if the pipeline has an upsampler")] = None,
    upsample_steps: Annotated[int | None, typer.Option(help="of the upsampler; default: the pipeline's")] = None,
    upsample_sampler: Annotated[str | None, typer.Option(help="of the upsampler; default: the pipeline's")] = None,
    upsample_eta: Annotated[float | None, typer.Option(help="like --eta, for the upsampler")] = None,
    upsample_strength: Annotated[
        float | None, typer.Option(help="share of the upsampler's steps that is taken")
    ] = None,
    upsample_time_grid: Annotated[str | None, typer.Option(help="of the upsampler")] = None,
    upsample_thresholding: Annotated[str | None, typer.Option(help="of the upsampler")] = None,
    local: Annotated[bool, typer.Option("--local", help="on this machine's devices, without a service")] = False,
    devices: Annotated[
        str | None, typer.Option(help="with --local: such as cuda:0,cuda:1; default ADM_DEVICE; auto is all")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="with --local: images in a step; default ADM_MAX_ROWS")
    ] = None,
    url: Annotated[str | None, typer.Option(help="of the service; default: the one on ADM_HOST and ADM_PORT")] = None,
    window: Annotated[int, typer.Option(min=1, help="images at the service at a time, rounded up to jobs of 16")] = 128,
) -> None:
    """Make thousands of images; after any interruption, the same command resumes."""
    from rich.console import Console

    from bulk.errors import BulkError, StoppedError
    from bulk.run import Order, run
    from jobs.settings import Settings

    with one_line_errors(BulkError):
        settings = Settings.load()
        upsampler = {
            "steps": upsample_steps,
            "sampler": upsample_sampler,
            "eta": upsample_eta,
            "strength": upsample_strength,
            "time_grid": upsample_time_grid,
            "thresholding": upsample_thresholding,
        }
        order = Order(
            out=out,
            model=model or settings.default_model,
            count=count,
            classes=classes,
            seed=seed,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_schedule=guidance_schedule,
            steps=steps,
            sampler=sampler,
            eta=eta,
            time_grid=time_grid,
            thresholding=thresholding,
            upsample=upsample,
            base_samples=base_samples,
            upsampler={name: value for name, value in upsampler.items() if value is not None},
        )
        if local:
            typer.echo(f"loading {order.model} ...", err=True)  # before the import of torch, which takes seconds
        source = on_this_machine(settings, devices, rows) if local else at_service(settings, url, window)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
        try:
            typer.echo(run(order, source, Console(stderr=True)))
        except StoppedError as error:
            typer.echo(f"adm: {error}", err=True)
            raise typer.Exit(130) from error


def on_this_machine(settings: "Settings", devices: str | None, rows: int | None) -> "Local":
    """Sample on the given devices, or on those that ADM_DEVICE selects."""
    from bulk.local import Local
    from jobs import logs
    from worker import local_worker

    quiet = settings.model_copy(update={"log_level": "warning", "max_rows": rows or settings.max_rows})
    logs.configure(quiet)
    chosen = devices.split(",") if devices else local_worker.devices(settings.device)
    return Local(quiet, chosen, local_worker.pipeline_of, local_worker.LocalWorker, local_worker.REFUSALS)


def at_service(settings: "Settings", url: str | None, window: int) -> "Source":
    """The given service, or the one that `adm up` starts with these settings."""
    from bulk.remote import Remote

    if url is None:
        from stack.embedded import page_address  # not installed in containers, which use --url

        url = page_address(settings)
    return Remote(url, window, settings.api_key)
