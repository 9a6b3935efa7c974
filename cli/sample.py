"""`adm sample`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from bulk.local import Local
    from bulk.run import RunOptions
    from bulk.source import Source
    from jobs.settings import Settings


Out = Annotated[Path, typer.Option(help="samples.npz in the official layout, or a folder of PNGs")]
Count = Annotated[int | None, typer.Option(min=1, help="images; default: the lines of a file given as --classes")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="uniform (random; default), balanced (all in turn), none, a list (0,3,torus: in turn), or a file"
    ),
]
BaseSamples = Annotated[
    Path | None, typer.Option(help="official .npz of images to enlarge, in place of the base stage's")
]
ModelName = Annotated[str | None, typer.Option(help="pipeline; default ADM_DEFAULT_MODEL")]
OwnNumber = Annotated[float | None, typer.Option(help="default: the pipeline's")]
OwnCount = Annotated[int | None, typer.Option(help="default: the pipeline's")]
OwnName = Annotated[str | None, typer.Option(help="default: the pipeline's")]
Eta = Annotated[float | None, typer.Option(help="only for ddim: 0 draws no noise, 1 as much as ddpm")]
TimeGrid = Annotated[str | None, typer.Option(help="official, even, uniform, logsnr or karras")]
Thresholding = Annotated[str | None, typer.Option(help="of the predicted x_0: clip, dynamic, none")]
Interval = Annotated[tuple[int, int] | None, typer.Option(help="guide only at timesteps from A to B", metavar="A B")]
Schedule = Annotated[str | None, typer.Option(help="constant or entropy; default: the pipeline's")]
Seed = Annotated[int, typer.Option(min=0, help="image i is a function of the seed and i")]
Upsample = Annotated[bool | None, typer.Option(help="default: yes if the pipeline has an upsampler")]
UpsamplerCount = Annotated[int | None, typer.Option(help="of the upsampler; default: the pipeline's")]
UpsamplerName = Annotated[str | None, typer.Option(help="of the upsampler; default: the pipeline's")]
UpsamplerEta = Annotated[float | None, typer.Option(help="like --eta, for the upsampler")]
UpsamplerStrength = Annotated[float | None, typer.Option(help="share of the upsampler's steps that is taken")]
UpsamplerChoice = Annotated[str | None, typer.Option(help="of the upsampler")]
IsLocal = Annotated[bool, typer.Option("--local", help="on this machine's devices, without a service")]
Devices = Annotated[
    str | None, typer.Option(help="with --local: such as cuda:0,cuda:1; default ADM_DEVICE; auto is all")
]
Rows = Annotated[int | None, typer.Option(min=1, help="with --local: images in a step; default ADM_MAX_ROWS")]
Url = Annotated[str | None, typer.Option(help="address of the service; default: that of ADM_HOST and ADM_PORT")]
Window = Annotated[int, typer.Option(min=1, help="images at the service at a time, rounded up to jobs of 16")]


def sample(
    out: Out,
    count: Count = None,
    classes: Classes = None,
    base_samples: BaseSamples = None,
    model: ModelName = None,
    guidance_scale: OwnNumber = None,
    steps: OwnCount = None,
    sampler: OwnName = None,
    eta: Eta = None,
    time_grid: TimeGrid = None,
    thresholding: Thresholding = None,
    guidance_interval: Interval = None,
    guidance_schedule: Schedule = None,
    seed: Seed = 0,
    upsample: Upsample = None,
    upsample_steps: UpsamplerCount = None,
    upsample_sampler: UpsamplerName = None,
    upsample_eta: UpsamplerEta = None,
    upsample_strength: UpsamplerStrength = None,
    upsample_time_grid: UpsamplerChoice = None,
    upsample_thresholding: UpsamplerChoice = None,
    local: IsLocal = False,
    devices: Devices = None,
    rows: Rows = None,
    url: Url = None,
    window: Window = 128,
) -> None:
    """Make thousands of images; after any interruption, the same command resumes."""
    from bulk.errors import BulkError
    from bulk.run import RunOptions
    from jobs.settings import Settings

    with one_line_errors(BulkError):
        settings = Settings.load()
        upsampler = {
            "steps": upsample_steps, "sampler": upsample_sampler, "eta": upsample_eta, "strength": upsample_strength,
            "time_grid": upsample_time_grid, "thresholding": upsample_thresholding,
        }  # fmt: skip
        options = RunOptions(
            out=out, model=model or settings.default_model, count=count, classes=classes, seed=seed, steps=steps,
            sampler=sampler, eta=eta, time_grid=time_grid, thresholding=thresholding, guidance_scale=guidance_scale,
            guidance_interval=guidance_interval, guidance_schedule=guidance_schedule, base_samples=base_samples,
            upsample=upsample, upsampler={name: value for name, value in upsampler.items() if value is not None},
        )  # fmt: skip
        if local:
            typer.echo(f"loading {options.model} ...", err=True)  # before the import of torch, which takes seconds
        run_to_end(options, on_this_machine(settings, devices, rows) if local else at_service(settings, url, window))


def run_to_end(options: "RunOptions", source: "Source") -> None:
    """Make the images and print where they are; exit with status 130 when interrupted. Raises: BulkError."""
    from rich.console import Console

    from bulk.errors import StoppedError
    from bulk.run import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        typer.echo(run(options, source, Console(stderr=True)))
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
        from standalone.embedded import page_address  # not installed in containers, which use --url

        url = page_address(settings)
    return Remote(url, window, settings.api_key)
