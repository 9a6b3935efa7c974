"""Training runs of tiny networks on a few random images: a second long, and real in every part."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.config import RunConfig, merge, read_config
from training.distributed import Group
from training.images import ImagesInMemory
from training.loop import Run, Tick
from training.session import Request, train
from training.state import StateFiles

CLASSES = ("red", "green", "blue")
FIELDS: dict[str, Any] = {
    "kind": "diffusion",
    "seed": 5,
    "data": {"path": "images.npz"},
    "network": {"image_size": 8, "channel_mult": [1], "attention_sizes": []},
    "objective": {"label_dropout": 0.2},
    "optimiser": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2},
    "averages": {"rates": [0.9], "power": [0.1]},
    "compute": {"device": "cpu", "precision": "fp32"},
    "saving": {"log_steps": 2},
}


def config(**changes: Any) -> RunConfig:
    """A run of four steps, with changes to its fields."""
    return read_config(merge(FIELDS, changes))


def images(count: int = 16, image_size: int = 8) -> ImagesInMemory:
    """Images of one colour each, which shows their class, under a little noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(CLASSES)
    colours = 200 * torch.eye(3)[labels] + 20
    pixels = colours[:, :, None, None] + torch.randint(30, (count, 3, image_size, image_size), generator=generator)
    return ImagesInMemory(pixels.to(torch.uint8), labels, CLASSES)


def write_npz(path: Path, count: int = 16) -> Path:
    """The same images as a file."""
    data = images(count)
    np.savez(path, data.images.permute(0, 2, 3, 1).numpy(), data.class_labels.numpy())
    return path


def start(given: RunConfig, group: Group | None = None, data: ImagesInMemory | None = None) -> Run:
    precision = given.compute.precision
    assert precision != "auto"
    return Run(given, data or images(), device=torch.device("cpu"), precision=precision, group=group or Group())


def finish(run: Run, files: StateFiles | None = None) -> list[Tick]:
    return list(run.train(files, lambda: False))


def assert_same(one: Run, other: Run) -> None:
    """Equal bit for bit in weights, averages and step."""
    assert one.step == other.step
    for name, value in one.parameters.items():
        assert torch.equal(value, other.parameters[name]), name
    for average, values in one.averages.values.items():
        for name, value in values.items():
            assert torch.equal(value, other.averages.values[average][name]), (average, name)


if __name__ == "__main__":  # a run of its own process, for tests that kill it: FOLDER IMAGES STEPS
    folder, data_path, steps = sys.argv[1:]
    torch.set_num_threads(1)
    train(
        config(data={"path": data_path}, optimiser={"steps": int(steps)}, saving={"state_seconds": 1e-6}),
        Request(Path(folder)),
    )
