"""Chooses whether a worker's networks are compiled. ADM_COMPILE=yes compiles; auto only loads code compiled earlier."""

from collections.abc import Sequence

import structlog
import torch

from engine.compiling import Compiler, NoCompilerError, configs_of
from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from models.memory import bytes_of_compiled, free_bytes
from models.stack import Stack
from vocabulary.precisions import Precision
from worker.error_texts import gib

log = structlog.get_logger("worker")


def choose_compiler(
    settings: Settings, device: torch.device, stacks: Sequence[Stack], precision: Precision
) -> Compiler | None:
    """The compiler for these stacks, or None if they run eagerly.

    Raises: SettingsError if ADM_COMPILE=yes and the networks cannot be compiled.
    """
    if settings.compile == "no" or (settings.compile == "auto" and device.type != "cpu"):
        return None
    if device.type != "cpu":
        raise SettingsError(f"ADM_COMPILE: networks are compiled on a CPU only, not on {device}")

    def report(part: str, rows: int) -> None:
        log.info("loading_compiled" if compiler.is_warm else "compiling", stage=part, rows=rows)

    try:
        compiler = Compiler(settings.data / "compiled", stacks, precision, settings.max_rows, report)
    except NoCompilerError as error:
        if settings.compile == "auto":
            return None
        raise SettingsError(f"ADM_COMPILE: {error}") from error
    if settings.compile == "auto" and not compiler.is_warm:
        return None
    configs = [config for stack in stacks for config in configs_of(stack)]
    free = free_bytes(device)
    needed = bytes_of_compiled(configs, settings.max_rows)
    if free is not None and needed > free:
        more = f"compiled networks need {gib(needed)} more at ADM_MAX_ROWS={settings.max_rows}"
        line = f"{more}, {gib(free)} are free"
        if settings.compile == "yes":
            raise SettingsError(f"ADM_COMPILE: {line}")
        log.warning("not_compiled", reason=line)
        return None
    log.info("compiled_networks", warm=compiler.is_warm, folder=str(compiler.folder), compiler=compiler.version)
    return compiler
