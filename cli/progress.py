"""The bar that shows on a terminal how far images are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Says what is being done and, where that is known, which share of all is done."""

    def __call__(self, doing: str, fraction: float | None = None) -> None: ...


@contextmanager
def progress_bar(doing: str) -> Iterator[Show]:
    """Show a bar on stderr until the end of the block, where that is a terminal."""
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
