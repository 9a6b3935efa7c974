"""Reads runs from their folders, for a list or one run in full."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runfolder.folder import CONFIG, INFO, PREVIEWS, RunFolderError, read_json
from runfolder.stats import read_lines


@dataclass(frozen=True)
class RunSummary:
    """A run's configuration, the records of its starts, and its lines of figures."""

    folder: Path
    config: dict[str, Any]
    info: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """The step that the run has reached, by its newest figures or its last stop."""
        return max(int(self.lines[-1]["step"]) if self.lines else 0, int(self.info.get("step", 0)))

    @property
    def steps(self) -> int:
        return int(self.config["optimiser"]["steps"])

    @property
    def last(self) -> dict[str, Any]:
        """The newest value of each figure."""
        return {name: value for line in self.lines for name, value in line.items()}

    @property
    def previews(self) -> list[Path]:
        found = sorted((self.folder / PREVIEWS).glob("*.png"))
        return [each for each in found if each.is_file() and not each.is_symlink()]


def read_summary(folder: Path, most_bytes: int | None = None) -> RunSummary:
    """Read a run, with all figures or those in the last most_bytes bytes of stats.jsonl.

    Raises: RunFolderError if the folder is not a run.
    """
    try:
        config, info, lines = read_json(folder / CONFIG), read_json(folder / INFO), read_lines(folder, most_bytes)
    except OSError as error:
        raise RunFolderError(f"{folder}: its figures cannot be read ({error.strerror})") from error
    run = RunSummary(folder, config, info, lines)
    try:
        fits = run.steps > 0 and run.step >= 0 and isinstance(info["kind"], str)
        fits = fits and isinstance(info["starts"][-1]["time"], int | float) and isinstance(info["data"], dict)
    except (KeyError, IndexError, TypeError, ValueError):
        fits = False
    if not fits:
        raise RunFolderError(f"{folder}: {CONFIG} or {INFO} lacks a field; is it a training run?")
    return run


def find_runs(folder: Path, most_bytes: int | None = None) -> Iterator[RunSummary]:
    """Every run below a folder, by name; unreadable ones are skipped."""
    for config in sorted(folder.rglob(CONFIG)):
        try:
            str(config).encode()  # a name that is not UTF-8 cannot be in a URL
            yield read_summary(config.parent, most_bytes)
        except (RunFolderError, UnicodeEncodeError):
            continue
