"""`adm models`: the official checkpoints: what there is, fetched, verified, converted, inspected."""

import contextlib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from models.checkpoints.presets import Preset
    from models.checkpoints.wrapping import Network

app = typer.Typer(help="Official checkpoints: list, fetch, verify, convert; inspect any.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="a checkpoint or pipeline, as adm models list names it")]
File = Annotated[Path, typer.Argument(help="a checkpoint, .pt or .safetensors")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="default: the one the file is named after")]
Where = Annotated[
    str | None,
    typer.Option(
        "--weights-at", help="which of several networks in the file, as adm models inspect names their places"
    ),
]
Dtype = Literal["fp32", "bf16", "fp16"]

# the open flags, as the official command lines name them
NewOrder = Annotated[
    bool | None,
    typer.Option("--use-new-attention-order/--no-use-new-attention-order", help="qkv grouped by q, k, v before heads"),
]
NumHeads = Annotated[int | None, typer.Option(help="heads at every width")]
HeadChannels = Annotated[int | None, typer.Option(help="channels of each head")]
DecoderHeads = Annotated[int | None, typer.Option(help="with --num-heads: those of the decoder; -1: as many")]
ImageSize = Annotated[int | None, typer.Option(help="edge of the images, pixels")]
NumResBlocks = Annotated[int | None, typer.Option(help="a level, where the keys allow several")]
NoiseSchedule = Annotated[Literal["linear", "cosine"] | None, typer.Option()]
DiffusionSteps = Annotated[int | None, typer.Option(help="timesteps of training")]
RescaleTimesteps = Annotated[
    bool | None,
    typer.Option("--rescale-timesteps/--no-rescale-timesteps", help="the network sees t * 1000 / diffusion_steps"),
]
PredictXstart = Annotated[
    bool | None, typer.Option("--predict-xstart/--no-predict-xstart", help="the output is x_0, not eps")
]
SigmaSmall = Annotated[
    bool | None, typer.Option("--sigma-small/--no-sigma-small", help="the posterior's variance, where none is learned")
]


@app.command("list")
def list_presets() -> None:
    """The official checkpoints and the pipelines made of them."""
    from rich.console import Console
    from rich.table import Table

    from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS

    checkpoints = Table("checkpoint", "role", "size", "parameters", "classes", title="Checkpoints")
    for preset in PRESETS.values():
        size = f"{preset.low_res_size or ''}{' to ' if preset.low_res_size else ''}{preset.config.image_size}"
        classes = str(len(preset.class_names) or "none")
        checkpoints.add_row(preset.name, preset.role, size, f"{preset.param_count / 1e6:.1f} M", classes)
    pipelines = Table("pipeline", "made of", "steps", "scale", "FID", title="Pipelines")
    for each in OFFICIAL_PIPELINES.values():
        fid = f"{each.published[0].fid:g}" if each.published else ""
        scale = f"{each.sampling.guidance_scale:g}" if each.sampling.classifier else ""
        pipelines.add_row(each.name, ", ".join(each.files), str(each.sampling.steps), scale, fid)
    console = Console()
    console.print(checkpoints)
    console.print(pipelines)


def named_presets(name: str) -> "tuple[Preset, ...]":
    """A checkpoint by its name, or all that a pipeline is made of; leaves with one line for a name of neither."""
    from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS

    if name in OFFICIAL_PIPELINES:
        return tuple(PRESETS[each] for each in OFFICIAL_PIPELINES[name].files)
    if name not in PRESETS:
        known = ", ".join([*PRESETS, *OFFICIAL_PIPELINES])
        typer.echo(f"adm: no preset and no pipeline is named {name!r}; there are {known}", err=True)
        raise typer.Exit(1)
    return (PRESETS[name],)


@app.command()
def add(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs: a base, and a classifier, upsampler and judge")],
    name: Annotated[str, typer.Option(help="name of the stack, which its pipeline has too")],
    dtype: Annotated[Dtype, typer.Option(help="of the weights in the files")] = "fp16",
    width: Annotated[float | None, typer.Option(help="relative width of the power-function average to pack")] = None,
    weights: Annotated[Path | None, typer.Option(help="folder of stacks; default ADM_WEIGHTS")] = None,
) -> None:
    """Pack the averaged weights of training runs into a stack, which adm up serves at its next start."""
    from jobs.settings import Settings
    from models.checkpoints.network_file import WeightsError
    from training.packing import add_stack

    with one_line_errors(WeightsError, ValueError, OSError):
        folder = add_stack(runs, name, weights or Settings.load().weights, dtype=dtype, width=width)
        for path in sorted(folder.iterdir()):
            typer.echo(f"{path}  {path.stat().st_size:,} bytes")
        typer.echo(f"{folder}: adm up serves it at its next start")


@app.command()
def show(name: Name) -> None:
    """A checkpoint, or each of a pipeline's: flags, configuration, sampling settings, published figures."""
    from rich.console import Console

    from cli.preset_table import preset_table

    console = Console()
    for preset in named_presets(name):
        console.print(preset_table(preset))


@app.command()
def fetch(
    name: Name,
    source: Annotated[str | None, typer.Option("--from", help="a mirror: the file's address, or its folder's")] = None,
    to: Annotated[Path | None, typer.Option(help="folder; default official/ in ADM_WEIGHTS")] = None,
) -> None:
    """Fetch a checkpoint, or all of a pipeline's; a later run goes on where an earlier one stopped.

    Their sizes and sha256 are recorded.
    """
    from jobs.settings import Settings
    from models.checkpoints.fetch import FetchError
    from models.checkpoints.presets import OFFICIAL_FOLDER, OFFICIAL_URL
    from models.checkpoints.provenance import ChangedFileError

    presets, base = named_presets(name), source or OFFICIAL_URL
    if base.endswith(".pt") and len(presets) > 1:
        typer.echo(f"adm: --from: {name} is {len(presets)} files; give the address of their folder", err=True)
        raise typer.Exit(1)
    with one_line_errors(FetchError, ChangedFileError, OSError):
        folder = to or Settings.load().weights / OFFICIAL_FOLDER
        for preset in presets:
            target = folder / preset.file
            new = fetch_under_a_bar(base if base.endswith(".pt") else f"{base.rstrip('/')}/{preset.file}", target)
            there = "" if new else ", there already"
            typer.echo(f"{target}  {target.stat().st_size:,} bytes{there}; next: adm models verify")


def fetch_under_a_bar(url: str, target: Path) -> bool:
    """Fetch a file and show how far it is; False where it was there already. Raises: as `fetch` does."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from models.checkpoints.fetch import fetch as fetch_file

    columns = TextColumn(target.stem), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(target.stem, total=None)
        return fetch_file(url, target, lambda done, total: progress.update(task, completed=done, total=total))


@app.command()
def verify(path: File, preset: PresetOption = None, weights_at: Where = None) -> None:
    """Compare every key, shape, dtype and value of a checkpoint with its preset, and the file with its record.

    Without a preset it is compared with what it says of itself, or with the network that its keys tell.
    """
    from models.checkpoints.tensor_file import read_network
    from models.checkpoints.verify import expected
    from models.checkpoints.verify import verify as verify_file

    with wrong_answers(path):
        network = read_network(path, weights_at)
        name, config = expected(path, preset, network.tensors)
        lines = verify_file(path, network.tensors, config)
    tell_place(network)
    for line in lines:
        typer.echo(f"{path.name}: {line}")
    typer.echo(f"{path.name}: is {name}" if not lines else f"{path.name}: {len(lines)} differences from {name}")
    if lines:
        raise typer.Exit(1)


@app.command()
def convert(
    path: File,
    out: Annotated[Path, typer.Argument(help="file to write, .safetensors")],
    dtype: Annotated[Dtype, typer.Option(help="of the values written")] = "fp32",
    preset: PresetOption = None,
    weights_at: Where = None,
    use_new_attention_order: NewOrder = None,
    num_heads: NumHeads = None,
    num_head_channels: HeadChannels = None,
    num_heads_upsample: DecoderHeads = None,
    image_size: ImageSize = None,
    num_res_blocks: NumResBlocks = None,
    noise_schedule: NoiseSchedule = None,
    diffusion_steps: DiffusionSteps = None,
    rescale_timesteps: RescaleTimesteps = None,
    predict_xstart: PredictXstart = None,
    sigma_small: SigmaSmall = None,
) -> None:
    """Write a checkpoint as safetensors, never holding two copies of it in memory.

    Of a preset, or with the flags that it was trained under, its configuration goes into the file, which a stack can
    then name as it is.
    """
    from models.checkpoints.answers import Answers
    from models.checkpoints.verify import convert as convert_file
    from models.checkpoints.verify import preset_of
    from models.networks.precision import DTYPES

    answers = Answers(
        use_new_attention_order=use_new_attention_order,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        image_size=image_size,
        num_res_blocks=num_res_blocks,
        noise_schedule=noise_schedule,
        diffusion_steps=diffusion_steps,
        rescale_timesteps=rescale_timesteps,
        predict_xstart=predict_xstart,
        sigma_small=sigma_small,
    )
    if preset and (given := answers.given()):
        typer.echo(f"adm: --preset settles {', '.join(given)}; give one or the other", err=True)
        raise typer.Exit(1)
    with wrong_answers(path):
        named = None if answers.given() else preset_of(path, preset)
        network = convert_file(path, out, DTYPES[dtype], named, answers, weights_at)
    tell_place(network)
    told = (
        ""
        if named is not None or answers.given()
        else ", tensors alone: without a preset or flags it does not say what it is"
    )
    typer.echo(f"{out}  {out.stat().st_size:,} bytes{told}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="a stack's folder, or a network file that says what it is")],
    out: Annotated[Path, typer.Argument(help="folder for NAME.pt")],
) -> None:
    """Write networks as the official scripts read them, and say the flags to give to those."""
    from models.checkpoints.export import export as export_networks

    with wrong_answers(source):
        for exported in export_networks(source, out):
            for line in exported.lines():
                typer.echo(line)


@app.command()
def inspect(
    path: File,
    weights_at: Where = None,
    use_new_attention_order: NewOrder = None,
    num_heads: NumHeads = None,
    num_head_channels: HeadChannels = None,
    num_heads_upsample: DecoderHeads = None,
    image_size: ImageSize = None,
    num_res_blocks: NumResBlocks = None,
    noise_schedule: NoiseSchedule = None,
    diffusion_steps: DiffusionSteps = None,
    rescale_timesteps: RescaleTimesteps = None,
    predict_xstart: PredictXstart = None,
    sigma_small: SigmaSmall = None,
) -> None:
    """Infer a network from its keys and shapes, and show what is known of the flags that those leave open.

    A flag given here goes before what the file says of itself, or the stack.json beside it.
    """
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from models.checkpoints.answers import Answers, resolve
    from models.checkpoints.claims import said_of
    from models.checkpoints.tensor_file import read_network
    from models.checkpoints.verify import shapes_of

    answers = Answers(
        use_new_attention_order=use_new_attention_order,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        image_size=image_size,
        num_res_blocks=num_res_blocks,
        noise_schedule=noise_schedule,
        diffusion_steps=diffusion_steps,
        rescale_timesteps=rescale_timesteps,
        predict_xstart=predict_xstart,
        sigma_small=sigma_small,
    )
    with wrong_answers(path):
        network = read_network(path, weights_at)
        shapes = shapes_of(network.tensors)
        said = {"as you say": answers} | said_of(path)
        resolved = resolve(shapes, reduce(Answers.over, said.values()))
    found = resolved.found
    known = Table("", "", title=f"{path.name}: {type(found.config).__name__}", show_header=False)
    left_open = {name for each in resolved.open for name in each.flag.split(" / ")}
    for field, value in dataclasses.asdict(found.config).items():
        if field not in left_open | {"num_heads_upsample", "rescale_residual", "dropout"}:
            known.add_row(field, str(value))
    known.add_row("same keys as", ", ".join(found.presets) or "no official checkpoint")
    known.add_row(
        "dtypes", ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in network.tensors.values()}))
    )
    if network.where or network.others:
        known.add_row("weights at", network.where)
        known.add_row("--weights-at also takes", ", ".join(network.others))
    asked = Table("flag", "value", "", "if it is wrong", title="Not told by its keys: if assumed, ask who trained it")
    for each in resolved.open:
        whence = next((where for where, source in said.items() if source.settle(each)), "assumed")
        asked.add_row(each.flag, resolved.value(each.flag), whence, each.effect)
    console = Console()
    console.print(known)
    console.print(asked)


def tell_place(network: "Network") -> None:
    """Say on stderr which of several networks in a file was taken."""
    if network.told:
        typer.echo(f"adm: {network.told} (--weights-at)", err=True)


@contextlib.contextmanager
def wrong_answers(path: Path) -> Iterator[None]:
    """One line for each wrong answer, and for a file that cannot be used."""
    from models.checkpoints.answers import AnswersError
    from models.checkpoints.inspection import NotAdmError
    from models.checkpoints.tensor_file import WeightsError

    with one_line_errors(WeightsError, OSError):
        try:
            yield
        except NotAdmError as error:
            raise WeightsError(f"{path.name}: {error}") from error
        except AnswersError as error:
            for line in error.lines:
                typer.echo(f"adm: {line}", err=True)
            raise typer.Exit(1) from error
