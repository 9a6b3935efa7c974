"""Keeps on disk which row shapes of a stage agreed, so that a later start of the same stage need not compare them.

The comparison takes most of a start's time. The name of a stage's file is a hash of all that the result depends on:
weights, versions of the code, processor, and environment variables that affect the choice of kernels. A difference that
an audit finds removes every file, so that the next start compares again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.processor import directing_variables, processor
from engine.rounding import ROUNDING
from engine.shape_choice import choose_shapes
from engine.short_hash import short_hash
from engine.stage import Stage
from files.atomic import atomic_write
from models.networks import native_norm


class KeptShapes:
    """The agreed row shapes of eager stages on a CPU, one file per stage in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def choose(self, stage: Stage, max_rows: int, weights: Sequence[str]) -> None:
        """Set the row shapes of a prepared stage: those of an earlier start, or those that agree now.

        Every shape is computed here for the first time. weights: hashes of the files of the stage's stack.
        Raises: like choose_shapes.
        """
        path = self._path(stage, max_rows, weights) if _has_kept_shapes(stage) else None
        if path is not None and (shapes := _read(path, stage.networks.parts)) is not None:
            stage.row_shapes |= shapes
            for rows in shapes["network"]:
                stage.rehearse(rows)
            return
        choose_shapes(stage, max_rows)
        if path is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, many_writers=True) as file:
                file.write(json.dumps(stage.row_shapes).encode() + b"\n")

    def forget(self) -> None:
        """Have every later start compare the shapes again."""
        for path in self._folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _path(self, stage: Stage, max_rows: int, weights: Sequence[str]) -> Path:
        facts = {
            "stage": stage.name,
            "weights": sorted(weights),
            "max_rows": max_rows,
            "mode": stage.networks.mode,
            "precision": stage.networks.precision,
            "torch": torch.__version__,
            "rounding": ROUNDING,
            "norms": _hash_of(native_norm.library_path()),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "processor": processor(),
            "environment": directing_variables(),
        }
        return self._folder / f"{short_hash(facts)}.json"


def _hash_of(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _has_kept_shapes(stage: Stage) -> bool:
    """Return whether a stage's shapes are kept.

    A large network has nothing to compare, and a compiled one is compared when it is compiled. On a GPU the comparison
    takes seconds, and its result depends on the free memory too.
    """
    return stage.device.type == "cpu" and stage.networks.compiler is None and not stage.networks.is_wide


def _read(path: Path, parts: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """The row shapes of these parts in a file, ascending; None if there is no such file or it is damaged."""
    try:
        kept = json.loads(path.read_bytes())
        shapes = {part: tuple(int(rows) for rows in kept[part]) for part in parts}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = all(each and each[0] > 0 and list(each) == sorted(set(each)) for each in shapes.values())
    return shapes if is_whole else None
