"""What the paper's claims are tested on: a shipped stack, and real images of its kind to compare its samples with."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from datasets.shapes import render_set
from models.stack_plan import PipelineSpec, StackPlan, read_stack
from training.data import TRAINING_SEED, Split, open_data
from training.images import Images
from training.sections import Data

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
REFERENCE_SEED = 1001  # of renders that nothing was trained on
TRAINING_RENDERS = 5_000  # of the base's 30,000: rendering all takes minutes
CLOTHES = Data(path=str(ROOT / "data" / "fashion-mnist"), padding=2, held_out_below=37, flip=False)
"""Fashion-MNIST as the shipped networks were trained on it; `adm data fetch fashion-mnist` fetches it."""
SIZE = 32  # of both bases, pixels

RealImages = tuple[Tensor, Tensor]
"""Images [N, 3, H, W], uint8, of the base's size, and their labels [N]."""


@dataclass(frozen=True)
class Subject:
    """A stack with a conditional and an unconditional pipeline, and its real images.

    held_out: so many images that nothing was trained on, in random order; a larger set begins with the smaller ones.
    training: the training images that are searched for copies.
    subfolder: of the results and charts. scales: of guidance, of the conditional pipeline (True) and the unconditional
    one. steps: by sampler. factors: on the predicted noise, beside the pipeline's own.
    """

    name: str
    held_out: Callable[[int], RealImages]
    training: Callable[[], Tensor]
    subfolder: str
    scales: Mapping[bool, tuple[float, ...]]
    steps: Mapping[str, tuple[int, ...]]
    factors: tuple[float, ...]

    @property
    def folder(self) -> Path:
        return WEIGHTS / self.name

    @cached_property
    def plan(self) -> StackPlan:
        return read_stack(self.folder)

    def pipeline(self, *, conditional: bool) -> PipelineSpec:
        return next(spec for spec in self.plan.pipelines.values() if spec.conditional is conditional)


def held_out_renders(count: int) -> RealImages:
    return render_set(count, REFERENCE_SEED, SIZE)


def training_renders() -> Tensor:
    return render_set(TRAINING_RENDERS, TRAINING_SEED, SIZE)[0]


def held_out_clothes(count: int) -> RealImages:
    """Clothes in the order of their hashes, which is random and does not depend on the order of the files."""
    pixels = pixels_of(clothes().held_out)
    hashes = [hashlib.sha256(each.numpy().tobytes()).digest() for each in pixels]
    order = sorted(range(len(pixels)), key=hashes.__getitem__)[:count]
    return pixels[order], clothes().held_out.class_labels[order]


def training_clothes() -> Tensor:
    return pixels_of(clothes().training)


def pixels_of(images: Images) -> Tensor:
    return torch.stack([images.pixels(index, None) for index in range(len(images))])


@cache
def clothes() -> Split:
    return open_data(CLOTHES, SIZE, Path())  # images are not cached


DEMO = Subject(
    "demo",
    held_out_renders,
    training_renders,
    "",
    {True: (0.0, 1.0, 2.0, 4.0, 8.0, 16.0), False: (0.0, 1.0, 5.0, 10.0, 20.0, 40.0)},
    {"ddim": (5, 10, 25, 50), "dpmpp_2m": (5, 10, 25), "ddpm": (5, 10, 25), "heun": (3, 5, 13)},
    (0.97, 1.0, 1.015, 1.045, 1.06),
)
FASHION = Subject(
    "fashion",
    held_out_clothes,
    training_clothes,
    "fashion",
    {True: (0.0, 1.0, 4.0, 16.0), False: (0.0, 1.0, 10.0, 40.0)},
    {"ddim": (5, 10, 25, 50), "dpmpp_2m": (5, 10, 25), "ddpm": (25,)},
    (0.97, 1.0, 1.06),
)
SUBJECTS = {subject.name: subject for subject in (DEMO, FASHION)}
