"""DDIM inversion for commands, on a pipeline that is loaded as a worker loads it; errors name the options."""

from pathlib import Path

import torch
from torch import Tensor

from datasets.image_folder import square_pixels
from engine.engine import Engine
from engine.inversion import Inverter
from engine.loading import OnDoubt, choose, load_plans
from engine.pipeline import Pipeline, build_stages
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.stack_plan import read_stack
from pictures.decoding import PictureError, decode
from vocabulary.classes import ClassNames
from worker.assembling import choose_precision
from worker.error_texts import error_text
from worker.loading import choose_device

ROWS = 8


def open_inverter(
    settings: Settings,
    folder: Path | None,
    name: str | None,
    steps: int,
    class_name: str | None,
    scale: float,
    on_doubt: OnDoubt,
) -> Inverter:
    """An inverter of a pipeline of a stack's folder, or of ADM_WEIGHTS; name None is the first one.

    Raises: SettingsError; ValueError for unusable weights, or guidance that the pipeline does not support.
    """
    device = choose_device(settings.device)
    try:
        pipeline = _load(settings, device, folder, name, on_doubt)
    except WeightsError as error:
        raise ValueError(error_text(error, "--pipeline")) from error
    stack, spec = pipeline.stack, pipeline.spec
    label = None if class_name is None else ClassNames(dict(enumerate(stack.class_names))).parse(class_name)
    if label is None and spec.conditional and stack.no_class_label is None:
        raise ValueError(f"{spec.name!r} does not support images without a class; give --class")
    if scale and stack.classifier is None:
        raise ValueError(f"--scale: {spec.name!r} has no classifier for guidance")
    if scale and label is None:
        raise ValueError("--scale needs --class: without one there is nothing to guide towards")
    stages = build_stages([stack], ROWS, precision=choose_precision(settings.precision, device))
    return Inverter(Engine(stages, ROWS), pipeline, steps, label)


def _load(
    settings: Settings, device: torch.device, folder: Path | None, name: str | None, on_doubt: OnDoubt
) -> Pipeline:
    if folder is None:
        name = name or settings.pipelines[0]
        plans = choose([name], settings.weights)
    else:
        plan = read_stack(folder)
        name = name or next(iter(plan.pipelines))
        if name not in plan.pipelines:
            raise ValueError(f"{folder} has no pipeline {name!r}; there are {', '.join(plan.pipelines)}")
        plans = [plan.only([name])]
    (stack,) = load_plans(plans, ROWS, device, on_doubt)
    return Pipeline(stack.pipelines[name], stack)


def read_square(path: Path, inverter: Inverter) -> Tensor:
    """A picture as pixels of the base stage's size. Raises: the errors of read_pixels."""
    return read_pixels(path, inverter.pipeline.stack.base.network.config.image_size)


def read_pixels(path: Path, size: int) -> Tensor:
    """A picture's middle square [3, size, size], uint8. Raises: ValueError, with its name, if it is no picture."""
    try:
        return square_pixels(decode(path), size)
    except PictureError as error:
        raise ValueError(f"{path.name}: {error}") from error
