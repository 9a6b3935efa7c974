"""Texts of loading and memory errors for users: the setting to change, and the command that helps."""

from engine.loading import MissingFileError, ShortageError, UnknownPipelineError
from models.checkpoints.network_file import WeightsError
from models.memory import Shortage


def error_text(error: WeightsError, setting: str = "ADM_PIPELINES") -> str:
    """Return one line with the error and its remedy.

    setting: the variable or option that named the pipelines; "" where the caller adds its name.
    """
    prefix = f"{setting}: " if setting else ""
    match error:
        case UnknownPipelineError() if not error.weights.is_dir():
            return f"ADM_WEIGHTS: {error.weights} is not a folder; name the folder of the stacks"
        case UnknownPipelineError():
            there = f"no stack of {error.weights} (ADM_WEIGHTS) has a pipeline {error.name!r}"
            return f"{prefix}{there}; there are {', '.join(error.known)}"
        case MissingFileError():
            missing = f"needs {error.path.name}, which is not in {error.path.parent} (ADM_WEIGHTS)"
            return f"{prefix}{error.pipeline!r} {missing}; adm models fetch {error.path.stem} downloads it"
        case ShortageError():
            verb = "needs" if len(error.pipelines) == 1 else "need"
            return f"{prefix}{', '.join(error.pipelines)} {verb} {shortage_text(error.shortage)} on {error.device}"
    return str(error)


def shortage_text(lack: Shortage) -> str:
    """Return what is needed, what is free, and what would fit."""
    free = f"{gib(lack.free_bytes)} are free"
    needed = f"{gib(lack.needed_bytes)} at ADM_MAX_ROWS={lack.max_rows}, {free}"
    if lack.rows_that_fit:
        return f"{needed}; ADM_MAX_ROWS={lack.rows_that_fit} would fit"
    fitting = ", ".join(f"{name} with ADM_MAX_ROWS={rows}" for name, rows in lack.fitting.items())
    return f"{needed}; " + (f"one alone would fit: {fitting}" if fitting else "none of them fits alone")


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
