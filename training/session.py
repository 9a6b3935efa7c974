"""Sets a training run up from names and runs it with progress on the terminal or in a log."""

import dataclasses
import signal
import sys
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.image_folder import Reading
from datasets.listing import LabelsFrom
from training.data import LabelledImages, own_images, rendered_shapes
from training.loop import Plan, Run, Task, Tick
from training.recipes import (
    LABEL_DROPOUT,
    RECIPES,
    Recipe,
    base_network,
    classifier_network,
    judge_network,
    process,
    upsampler_network,
)
from training.sole import sole_run
from training.tasks import ClassifierTask, DiffusionTask, JudgeTask, UpsamplerTask

LOG_SECONDS = 30.0
SHOWN_SKIPPED = 20


def build_task(name: str, recipe: Recipe, data: LabelledImages) -> Task:
    """The task of a name in RECIPES."""
    num_classes = len(data.class_names)
    match name:
        case "diffusion":
            network = base_network(num_classes + 1)
            return DiffusionTask(network, process("cosine"), data, recipe.batch_size, LABEL_DROPOUT)
        case "classifier":
            return ClassifierTask(classifier_network(num_classes), process("cosine"), data, recipe.batch_size)
        case "upsampler":
            return UpsamplerTask(
                upsampler_network(), process("linear"), data, recipe.batch_size, recipe.image_size // 2
            )
        case "judge":
            return JudgeTask(judge_network(num_classes), data, recipe.batch_size)
    raise ValueError(f"unknown task {name!r}; known are {', '.join(RECIPES)}")


def train(
    name: str,
    plan: Plan,
    *,
    images: Path | None,
    cache: Path,
    weights: Path | None = None,
    labels_from: LabelsFrom = "auto",
    strict: bool = False,
) -> None:
    """Train to the end of the plan, or until interrupted: the next call goes on where this one stopped.

    images is a folder of one's own, read as `own_images` says; None takes the rendered shapes, which are kept in the
    cache folder. What was read is printed before anything is trained.
    weights is a network file to begin a new run at.
    Raises: ValueError for a folder without images, or a run's folder that is in use or of another run; WeightsError for
    weights that do not fit; and as `Run.ticks`.
    """
    recipe = dataclasses.replace(RECIPES[name], batch_size=plan.batch_size)
    if images is None:
        data = rendered_shapes(recipe.images, recipe.image_size, cache)
    else:
        data, reading = own_images(images, recipe.image_size, labels_from, strict=strict)
        print_reading(images, reading)
    with sole_run(plan.folder):
        torch.manual_seed(plan.seed)  # the initial weights
        run = Run(build_task(name, recipe, data), plan)
        if weights is not None:
            run.start_from(weights)
        parameters = sum(parameter.numel() for parameter in run.task.model.parameters())
        print(f"{name}: {parameters / 1e6:.2f}M parameters, at step {run.step}, into {plan.folder}", flush=True)
        follow(run)


def follow(run: Run) -> None:
    """Train to the end, or until a signal, with progress shown."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped run saves, however it is stopped
    try:
        show = _show_bar if sys.stdout.isatty() else _show_lines
        show(run)
        run.preview()
    except KeyboardInterrupt:
        print(f"stopped at step {run.step}; the same command goes on from here")


def print_reading(folder: Path, reading: Reading, at_most: int | None = SHOWN_SKIPPED) -> None:
    """Say what a folder holds, and so many of the files that are not used."""
    for line in reading.lines():
        print(f"{folder}: {line}", flush=True)
    for each in reading.skipped[:at_most]:
        print(f"  {each.path.relative_to(folder)} {each.reason}", flush=True)
    if at_most is not None and len(reading.skipped) > at_most:
        print(f"  ... (adm train images {folder} names them all)", flush=True)


def _describe(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _show_bar(run: Run) -> None:
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:.1f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=1.0)
        smooth = Smoothed()
        for tick in run.ticks():
            description = f"step {tick.step}  {_describe(smooth.add(tick))}"
            progress.update(bar, completed=tick.done, description=description)


def _show_lines(run: Run) -> None:
    smooth, shown = Smoothed(), 0.0
    for tick in run.ticks():
        figures = smooth.add(tick)
        if time.monotonic() - shown > LOG_SECONDS:
            shown = time.monotonic()
            print(f"{tick.done:6.1%}  step {tick.step}  {tick.seconds:.0f} s  {_describe(figures)}", flush=True)


class Smoothed:
    """Running means of the figures: single batches jump too much to read."""

    def __init__(self, rate: float = 0.98) -> None:
        self.rate = rate
        self.means: dict[str, float] = {}

    def add(self, tick: Tick) -> dict[str, float]:
        for name, value in tick.figures.items():
            self.means[name] = self.rate * self.means.get(name, value) + (1 - self.rate) * value
        return self.means
