"""Common parts of the paper's rows: cells of images, which are made once and stored, and their figures."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.machine import machine
from bench.paper.subject import DEMO, REFERENCE_SEED, Subject
from datasets.shapes import render_set
from engine.engine import Engine
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.trajectory import StagePlan
from evaluation.extractors import Features, JudgeExtractor
from evaluation.intervals import mean_interval
from evaluation.resampling import Figure
from evaluation.sampling import Sampler, turns
from evaluation.scores import all_scores
from evaluation.stack_report import JUDGE
from files.atomic import atomic_write
from models.stack import DiffusionNetwork, Stack, load_stack
from vocabulary.precisions import Precision

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "paper"
RESULTS = ROOT / "bench" / "results" / "paper"
IMAGES = 500  # per cell, a multiple of a part
PART = 100
REFERENCE_IMAGES = 2000  # that nothing was trained on
SMALL_SIZE = 16  # of the networks that the paper's rows train, pixels
MAX_ROWS = 32
VARIANCE_CHANNELS = 3  # of the network's output, after the noise's channels

Variance = Literal["small", "large"]
FIXED: dict[str, float] = {"small": -1.0, "large": 1.0}
"""The network's output v that gives the lower (posterior's) or the upper bound (beta) of the variance."""


@dataclass(frozen=True)
class Cell:
    """One way to make images. In every cell, image i of part k has class i mod 10 and noise from (k, i)."""

    scale: float = 0.0
    sampler: str = "ddim"
    steps: int = 15
    conditional: bool = True
    eta: float = 0.0
    eps_scale: float | None = None  # None: the pipeline's own
    variance: Variance | None = None  # None: the network's own
    upsample: bool = False

    @property
    def name(self) -> str:
        """A file name with all settings that differ from the defaults."""
        changed = {key: value for key, value in asdict(self).items() if value != getattr(Cell(), key)}
        return "_".join(f"{key}-{value}" for key, value in changed.items()) or "plain"

    @property
    def plan(self) -> StagePlan:
        return StagePlan(BASE, self.sampler, self.steps, self.eta)


@dataclass
class Lab:
    """A stack, the images of its cells, and the reference for their metrics.

    images: of a cell, a multiple of `part`. references: real images to compare with. kept: the folder of the images.
    rows: of the largest batch.
    """

    precision: Precision = "bf16"
    images: int = IMAGES
    part: int = PART
    references: int = REFERENCE_IMAGES
    kept: Path = KEPT
    rows: int = MAX_ROWS
    subject: Subject = DEMO
    _points: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    _samplers: dict[Variance | None, tuple[Stack, Sampler]] = field(default_factory=dict)

    def pixels(self, cell: Cell) -> Tensor:
        """The images [N, 3, H, W], uint8, in the order of parts; stored ones are read."""
        parts = [self._part(cell, number) for number in range(self.images // self.part)]
        return torch.cat([torch.from_numpy(np.load(path)) for path in parts])

    @cached_property
    def judge(self) -> JudgeExtractor:
        return JudgeExtractor(self.subject.folder / JUDGE)

    @cached_property
    def reference(self) -> Features:
        """Features of held-out images at 32x32."""
        return self.features(self.subject.held_out(self.references)[0])

    @cached_property
    def small_reference(self) -> Features:
        """Features of renders as the networks that the paper's rows train see them: grey, small, enlarged."""
        return self.features(doubled(grey(render_set(self.references, REFERENCE_SEED, SMALL_SIZE)[0])))

    def features(self, pixels: Tensor) -> Features:
        """Features by the stack's judge."""
        parts = [self.judge(part) for part in pixels.split(PART)]
        return Features(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("pooled", "spatial", "probabilities"))
        )

    def point(self, cell: Cell) -> dict[str, Any]:
        """A cell's figures, computed once."""
        if cell not in self._points:
            self._points[cell] = self._measured(cell)
        return self._points[cell]

    def _measured(self, cell: Cell) -> dict[str, Any]:
        """A cell with every metric against the held-out images, and the judge's probability of the requested class."""
        found = self.features(self.pixels(cell))
        asked = torch.tensor(turns(self.part, len(self.subject.plan.class_names)) * (self.images // self.part))
        assert found.probabilities is not None
        sure = found.probabilities.gather(1, asked[:, None])[:, 0]
        low, high = mean_interval(sure)
        metrics = {name: asdict(each) for name, each in self.scores(found, self.reference).items()}
        metrics["class_probability"] = {"value": float(sure.mean()), "low": low, "high": high, "bias": None}
        return asdict(cell) | {"evaluations": cell.plan.num_evaluations, "metrics": metrics}

    def scores(self, sample: Features, reference: Features) -> dict[str, Figure]:
        """Every metric."""
        return all_scores(sample, reference, lambda metric: None).figures

    def seconds(self, cell: Cell) -> float:
        """Wall-clock seconds per image of the fastest part, because other programs disturb the rest."""
        self.pixels(cell)
        times = [json.loads(path.read_text())["seconds"] for path in self._folder(cell).glob("*.json")]
        return float(min(times)) / self.part

    def _folder(self, cell: Cell) -> Path:
        return self.kept / self.subject.subfolder / self.precision / cell.name

    def _part(self, cell: Cell, number: int) -> Path:
        path = self._folder(cell) / f"{number}.npy"
        if not path.exists():
            started = time.perf_counter()
            pixels = self._sampled(cell, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").write_text(json.dumps({"seconds": time.perf_counter() - started} | machine()))
            with atomic_write(path) as file:
                np.save(file, pixels.numpy())
            print(f"{cell.name}: part {number}, {time.perf_counter() - started:.0f} s", flush=True)
        return path

    def _sampled(self, cell: Cell, number: int) -> Tensor:
        stack, sampler = self._loaded(cell.variance)
        pipeline = Pipeline(self.subject.pipeline(conditional=cell.conditional), stack)
        eps_scale = pipeline.spec.eps_scale if cell.eps_scale is None else cell.eps_scale
        base = StagePlan(BASE, cell.sampler, cell.steps, cell.eta, eps_scale=eps_scale)
        upsample = None
        if cell.upsample:
            asked = pipeline.spec.upsampling
            assert asked is not None
            upsample = StagePlan(UPSAMPLE, asked.sampler, asked.steps, asked.eta, strength=asked.strength)
        labels = turns(self.part, len(stack.class_names))
        return sampler.sample(pipeline, labels, cell.scale, base, upsample, seed=number)

    def _loaded(self, variance: Variance | None) -> tuple[Stack, Sampler]:
        if variance not in self._samplers:
            stack = load_stack(self.subject.folder)
            if variance is not None:
                stack = replace(stack, base=with_variance(stack.base, variance))
            engine = Engine(build_stages([stack], self.rows, precision=self.precision), self.rows)
            self._samplers[variance] = stack, Sampler(engine)
        return self._samplers[variance]


def grey(pixels: Tensor) -> Tensor:
    """Images [N, 3, H, W] of uint8 with the mean of their colours in every channel."""
    return pixels.float().mean(dim=1, keepdim=True).round().to(torch.uint8).expand_as(pixels)


def doubled(pixels: Tensor) -> Tensor:
    """Images at twice their size, bilinearly, which the judge takes: uint8."""
    larger = F.interpolate(pixels.float(), scale_factor=2, mode="bilinear", align_corners=False)
    return larger.round().to(torch.uint8)


def with_variance(base: DiffusionNetwork, variance: Variance) -> DiffusionNetwork:
    """A network with one bound of the variance: the output for it is overwritten if there is one."""
    if base.network.config.out_channels > VARIANCE_CHANNELS:
        fix_variance(base.network.out[-1], FIXED[variance])
        return base
    return replace(base, process=replace(base.process, sigma_small=variance == "small"))


@torch.no_grad()
def fix_variance(last: nn.Module, answer: float) -> None:
    """Let the network's last convolution always return this variance output for every pixel."""
    assert isinstance(last.weight, Tensor)
    assert isinstance(last.bias, Tensor)
    last.weight[VARIANCE_CHANNELS:] = 0
    last.bias[VARIANCE_CHANNELS:] = answer
