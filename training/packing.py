"""From finished runs to the files of a stack: averaged weights, as float16."""

from pathlib import Path

import torch

from models.checkpoint import WeightsError, read_config, read_tensors, save_network
from training.loop import EMA_FILE

FILES = {"diffusion": "base", "classifier": "classifier", "upsampler": "upsampler", "judge": "judge"}


def pack(runs: Path, folder: Path) -> list[Path]:
    """Write the averaged network of each run into the stack's folder; returns the files written.

    Raises: WeightsError for a folder without runs, and for a run whose averaged weights cannot be read.
    """
    sources = {name: runs / run / EMA_FILE for run, name in FILES.items()}
    if not any(source.exists() for source in sources.values()):
        raise WeightsError(f"{runs}: holds no run; {', '.join(FILES)} are looked for, each with its {EMA_FILE}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, source in sources.items():
        if source.exists():
            target = folder / f"{name}.safetensors"
            save_network(target, read_tensors(source), read_config(source), dtype=torch.float16)
            written.append(target)
    return written
