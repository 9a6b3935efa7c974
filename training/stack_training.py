"""Trains all networks of a stack, one after the other; resumable as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runfolder.folder import CONFIG
from runfolder.summary import read_summary
from training.config import RunConfig, merge, read_config
from training.presets import preset_fields
from training.session import Request, train

RECIPE = "demo"  # preset whose networks and settings are used for user stacks
ATTENDING_SHARE = 4  # edge of images over edge of feature maps with attention, as in the recipe


@dataclass(frozen=True)
class StackRequest:
    """The options. steps: of the base, None for the recipe's; other networks keep the recipe's proportion."""

    images: Path
    runs: Path
    image_size: int
    batch_size: int | None
    steps: int | None
    minutes: float | None
    upsampler: bool
    has_classes: bool
    strict: bool
    allow_changes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, str]:
        """The preset of each network, by the name of its run; a classifier is trained only if there are classes."""
        parts = {"base": RECIPE}
        if self.has_classes:
            parts["classifier"] = f"{RECIPE}-classifier"
        if self.upsampler:
            parts["upsampler"] = f"{RECIPE}-upsampler"
        return parts

    def config(self, part: str) -> RunConfig:
        """The configuration of a network's run. Raises: ConfigError."""
        preset = preset_fields(self.parts[part])
        size, optimiser = self.image_size, {"batch_size": self.batch_size, "steps": self._steps(preset)}
        changes: dict[str, Any] = {
            "data": {"source": "images", "path": str(self.images), "flip": True, "strict": self.strict},
            "network": {"image_size": size, "attention_sizes": [size // ATTENDING_SHARE]},
            "optimiser": {name: value for name, value in optimiser.items() if value is not None},
        }
        if part == "upsampler":
            changes["network"] = {"image_size": 2 * size, "small_size": size}
        elif not self.has_classes:
            changes = merge(changes, {"data": {"labelled": False}, "objective": {"label_dropout": 0.0}})
        return read_config(merge(preset, changes))

    @property
    def has_ended(self) -> bool:
        """Return whether every network has taken its last step, by the runs' folders."""
        folders = [self.runs / part for part in self.parts]
        if not all((folder / CONFIG).exists() for folder in folders):
            return False
        return all((run := read_summary(folder)).step >= run.steps for folder in folders)

    def _steps(self, preset: dict[str, Any]) -> int | None:
        if self.steps is None:
            return None
        share: float = preset["optimiser"]["steps"] / preset_fields(RECIPE)["optimiser"]["steps"]
        return max(round(self.steps * share), 1)


def train_parts(request: StackRequest, say: Callable[[str], None]) -> list[Path] | None:
    """Train the unfinished networks of a stack; return the folders of its runs, or None if it was stopped.

    Raises: the errors of `train`.
    """
    folders = []
    for part in request.parts:
        folder = request.runs / part
        say(f"{part}: {'resumes' if (folder / CONFIG).exists() else 'starts'} in {folder}")
        if not train(request.config(part), Request(folder, request.allow_changes, minutes=request.minutes)):
            return None
        folders.append(folder)
    return folders
