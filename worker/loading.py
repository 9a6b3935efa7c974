"""Chooses the device, loads a worker's pipelines and warms them up."""

import time

import structlog
import torch

from engine.loading import find_plans, load_stacks
from engine.threads import usable_threads
from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from models.host_memory import keep_freed_memory
from worker.assembling import assemble, warn_of_doubt
from worker.loaded_pipelines import LoadedPipelines

log = structlog.get_logger("worker")


def load(settings: Settings, device: torch.device, name: str) -> LoadedPipelines:
    """Load the stacks that the pipelines need and warm them up."""
    started = time.monotonic()
    names = readable_pipelines(settings)
    stacks = load_stacks(settings.weights, names, settings.max_rows, device, warn_of_doubt)
    loaded = assemble(settings, device, name, names, stacks)
    log.info("loaded", seconds=round(time.monotonic() - started, 2), row_shapes=loaded.info.row_shapes)
    return loaded


def readable_pipelines(settings: Settings) -> tuple[str, ...]:
    """The pipelines to load: those of the setting, or those of every readable stack, with a warning for other stacks.

    If the default pipeline is damaged, all pipelines are returned, so that the start fails with the reason.
    """
    if "pipelines" in settings.model_fields_set:
        return settings.pipelines
    damaged = find_plans(settings.weights.absolute()).damaged
    kept = tuple(name for name in settings.pipelines if name not in damaged)
    if not kept or settings.default_model in damaged:
        return settings.pipelines
    for name in settings.pipelines:
        if name not in kept:
            log.warning("pipeline_left_out", pipeline=name, reason=str(damaged[name]))
    return kept


def use_host(settings: Settings) -> None:
    """Set torch's threads and the allocator's options, as the settings and the system allow."""
    torch.set_num_threads(settings.threads or usable_threads())
    keep_freed_memory()


def choose_device(wanted: str) -> torch.device:
    """The device of a setting. Raises: SettingsError for a device that this machine does not have."""
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0].removesuffix(".")
        raise SettingsError(
            f"ADM_DEVICE: {wanted!r} is not usable here: {why}; set it to auto, or to a device that is here"
        ) from error
    return device
