"""A run's figures as TensorBoard events."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from runfolder.folder import EVENTS


class Events:
    """Writes figures into the folder's events; without a folder it writes nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._writer = None if folder is None else SummaryWriter(str(folder / EVENTS))

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, int(figures["step"]))
