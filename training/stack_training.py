"""Training all networks of a stack, one after the other; resumable as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runfolder.folder import CONFIG
from runfolder.summary import read_summary
from training.config import RunConfig, merge, read_config
from training.presets import preset_fields
from training.session import Request, train

RECIPE = "demo"  # whose networks and figures a stack of one's own takes
ATTENDING_SHARE = 4  # of the images' edge: the feature maps that attend, as in the recipe


@dataclass(frozen=True)
class StackRequest:
    """What to train. steps: of the base, None for the recipe's; the other networks take the recipe's proportion."""

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
        """The preset of each network, by the name of its run: a classifier is of use where there are classes."""
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
        """Whether every network has taken its last step, as the folders say."""
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
    """Train what is left of a stack; returns the folders of its runs, None where it was stopped before the end.

    Raises: as `train`.
    """
    folders = []
    for part in request.parts:
        folder = request.runs / part
        say(f"{part}: {'going on' if (folder / CONFIG).exists() else 'begins'} in {folder}")
        if not train(request.config(part), Request(folder, request.allow_changes, minutes=request.minutes)):
            return None
        folders.append(folder)
    return folders
