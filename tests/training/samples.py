"""A training run of a tiny network on a few random images: seconds long, and real in every part."""

import dataclasses
from pathlib import Path

import torch

from diffusion.process import Process
from diffusion.schedule import Schedule
from tests.models.samples import BASE, CLASSES
from training.data import LabelledImages
from training.loop import Plan, Run
from training.tasks import DiffusionTask

LONG = 10**6  # steps: more than a test waits for
NETWORK = dataclasses.replace(BASE, channel_mult=(1,), attention_resolutions=())


def data(count: int = 16, image_size: int = 8) -> LabelledImages:
    """Images of one colour each, which tells their class, under a little noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(CLASSES)
    colours = 200 * torch.eye(3)[labels] + 20
    images = colours[:, :, None, None] + torch.randint(30, (count, 3, image_size, image_size), generator=generator)
    return LabelledImages(images.to(torch.uint8), labels, CLASSES)


def task(seed: int = 0) -> DiffusionTask:
    """The base network's task, from initial weights that are the seed's."""
    torch.manual_seed(seed)
    return DiffusionTask(NETWORK, Process(Schedule.named("cosine", 1000)), data(), batch_size=4, label_dropout=0.2)


def plan(folder: Path, steps: int, *, save_seconds: float = 1e9, preview_seconds: float = 1e9) -> Plan:
    return Plan(
        folder,
        batch_size=4,
        learning_rate=1e-3,
        steps=steps,
        ema_rate=0.9,
        warmup_steps=2,
        seed=5,
        save_seconds=save_seconds,
        preview_seconds=preview_seconds,
    )


def train_for_ever(folder: Path) -> None:
    """Save after every step and say so, until killed."""
    for tick in Run(task(), plan(folder, LONG, save_seconds=0)).ticks():
        print(tick.step, flush=True)
