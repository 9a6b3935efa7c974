"""Common parts of the commands that measure pictures: options, checks of them, stored features, and progress."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.failure import one_line_errors

if TYPE_CHECKING:
    from evaluation.feature_files import Work
    from evaluation.report import Watch

Extractor = Annotated[
    str, typer.Option(help="judge, judge:FILE as adm train makes one, inception:FILE, or dinov2:FILE")
]
Strict = Annotated[bool, typer.Option("--strict", help="refuse sets with files that cannot be read")]


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Print errors that a user can correct in one line, and exit."""
    from bulk.errors import BulkError
    from models.checkpoints.network_file import WeightsError

    with one_line_errors(ValueError, OSError, WeightsError, BulkError):
        yield


def refuse_generated(source: str, where: str) -> None:
    """Refuse a generated source where only existing ones are allowed. Raises: ValueError."""
    from cli.generated_samples import LOCAL, SERVICE, is_generated

    if is_generated(source):
        raise ValueError(f"{where} {source}: must be an existing set; only SAMPLES may be {LOCAL}... or {SERVICE}...")


def refuse_target(path: Path, option: str, *sources: str) -> None:
    """Check a target path before minutes of work; it must be none of the sources. Raises: ValueError."""
    if path.is_dir():
        raise ValueError(f"{option} {path}: is a folder; give a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path.is_file() and any(Path(each).exists() and path.samefile(each) for each in sources):
        raise ValueError(f"{option} {path}: would replace the set that is measured; give another file")


def write_target(path: Path, option: str, text: str) -> None:
    """Write a text file whole or not at all. Raises: ValueError, one line, which names the option."""
    from files.atomic import write_text

    try:
        write_text(path, text)
    except OSError as error:  # that of a full disk names no file
        raise ValueError(f"{option} {path}: cannot be written ({error.strerror or error})") from error


def kept_work(*, thumbnails: bool = False) -> "Work":
    """The folder in which features are stored until their measurement ends."""
    from evaluation.feature_files import Work
    from jobs.settings import Settings

    return Work(Settings.load().data / "evaluate", thumbnails=thumbnails)


@contextlib.contextmanager
def watched() -> Iterator["Watch"]:
    """A progress bar on standard error while pictures are measured, and then the name of each metric."""
    from rich.console import Console

    from bulk.progress import shown_progress
    from evaluation.report import Watch

    with shown_progress(Console(stderr=True)) as progress:
        bar = progress.add_task("pictures", total=1, note="")

        def on_part(part: str, total: int) -> None:
            progress.reset(bar, total=total, description=part, note="")

        yield Watch(on_part, lambda images: progress.advance(bar, images))
