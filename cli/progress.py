"""The progress bar of images on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Shows the present activity and, if known, the share that is done."""

    def __call__(self, doing: str, fraction: float | None = None) -> None: ...


@contextmanager
def progress_bar(doing: str) -> Iterator[Show]:
    """Show a bar on stderr within the block, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=1.0)

        def show(doing: str, fraction: float | None = None) -> None:
            bar.update(task, description=doing, completed=fraction)

        yield show
