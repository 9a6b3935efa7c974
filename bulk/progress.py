"""The progress of a run: a bar on a terminal, plain lines in a log."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SPEED_SECONDS = 600.0  # window of the speed for the ETA, because chunks end in bursts
FIRST_LINE_SECONDS = 3.0
LINE_SECONDS = 30.0


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """The progress display for a console; its tasks have a field `note` for the reason of a wait."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, speed_estimate_period=SPEED_SECONDS, disable=not console.is_terminal
    ) as progress:
        if console.is_terminal:
            yield progress
            return
        ended = Event()
        lines = Thread(target=_print_lines, args=(progress, ended), daemon=True)
        lines.start()
        try:
            yield progress
        finally:
            ended.set()
            lines.join()


def _print_lines(progress: Progress, ended: Event) -> None:
    pause = FIRST_LINE_SECONDS
    while not ended.wait(pause):
        pause = min(2 * pause, LINE_SECONDS)
        if progress.tasks:
            progress.console.print(line(progress), markup=False, highlight=False, soft_wrap=True)  # and flush


def line(progress: Progress) -> str:
    """A line on the progress of the task that started last."""
    task = progress.tasks[-1]
    pieces = [f"{task.description}: {task.completed:.0f} of {task.total:.0f}"]
    if (seconds := task.time_remaining) is not None:
        pieces.append(f"{timedelta(seconds=seconds)} left")
    return ", ".join([*pieces, *filter(None, [task.fields["note"]])])
