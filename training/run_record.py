"""Records a run's start in its folder (configuration, data, machine), and compares a later start with the record."""

import platform
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from files.checkout import commit
from runfolder.folder import CONFIG, FORMAT, INFO, PREVIEWS, STATE, read_json, write_json
from training.config import ConfigError, read_config, refuse_changes
from training.data import Split, balance
from training.loop import Run
from vocabulary.counts import counted


def recorded_data(split: Split) -> dict[str, Any]:
    """A description of the images and classes, by which a later start recognises them."""
    return {
        "images": len(split.training),
        "held_out": len(split.held_out),
        "class_names": list(split.training.class_names),
        "classes": balance(split.training.class_labels, split.training.class_names),
        "fingerprint": split.training.fingerprint,
    }


def _has_begun(folder: Path) -> bool:
    return (folder / CONFIG).exists() and (folder / STATE).exists()


def refuse_another_run(run: Run, folder: Path, data: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Compare configuration and data with those of the run's start. Raises: ConfigError; RunFolderError."""
    if _has_begun(folder):
        refuse_changes(recorded_config(folder / CONFIG), run.config.model_dump(mode="json"), allowed)
        refuse_other_data(read_json(folder / INFO)["data"], data, allowed)


def record_start(run: Run, folder: Path, data: Mapping[str, Any]) -> None:
    """Record configuration, data and machine; call this after the last check that may refuse the start."""
    start = {"time": time.time(), "processes": run.group.size, **machine(run)}
    starts = read_json(folder / INFO)["starts"] if _has_begun(folder) else []
    write_json(folder / CONFIG, run.config.model_dump(mode="json"))
    write_json(folder / INFO, {"format": FORMAT, "kind": run.config.kind, "data": data, "starts": [*starts, start]})
    (folder / PREVIEWS).mkdir(exist_ok=True)
    print(
        f"{run.config.kind}: {sum(each.numel() for each in run.parameters.values()) / 1e6:.2f}M parameters, "
        f"{counted(data['images'], 'image')} ({data['held_out']} held out), "
        f"{counted(len(data['class_names']), 'class')}, "
        f"{run.device} in {run.precision}, into {folder}",
        flush=True,
    )


def recorded_config(path: Path) -> dict[str, Any]:
    """The configuration at a run's start; fields that are newer than the run get the value that keeps its
    behaviour.

    Raises: ConfigError for a configuration of an incompatible version.
    """
    try:
        return read_config(read_json(path)).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(f"{path}: was written by another version of this program: {error}") from error


def refuse_other_data(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Compare data with those at the run's start. Raises: ConfigError with the differences."""
    if "data" in allowed or before["fingerprint"] == now["fingerprint"]:
        return
    changed = [name for name in ("images", "held_out", "class_names", "classes") if before[name] != now[name]]
    what = ", ".join(f"{name} ({before[name]} before, {now[name]} now)" for name in changed) or "the pictures"
    raise ConfigError(f"the data have changed since the run began: {what}; train in another folder")


def machine(run: Run) -> dict[str, Any]:
    """The software and hardware of a run: versions, commit, processor, threads."""
    return {
        "versions": {name: version(name) for name in ("adm-serve", "torch", "numpy", "pillow")},
        "python": platform.python_version(),
        "commit": commit(),
        "processor": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "precision": run.precision,
    }
