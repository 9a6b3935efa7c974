"""Measures the best settings of a pipeline: the factor on the predicted noise, guidance scale and sampler.

Every setting uses the same seeds, so that settings are compared and not draws; the reported figures use other seeds.
The cost is the kernel distance (KID) of a judge's features to real images, which is unbiased for few images; without a
judge only the sharpness is measured.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.diffusion_process import process_of
from engine.engine import Engine
from engine.loading import load_plans
from engine.pipeline import BASE, Pipeline, build_stages
from engine.selfcheck import noise_agreement
from engine.trajectory import StagePlan
from evaluation.judging import Verdict, judge_images, sharpness
from evaluation.kernel_distance import KernelSums
from evaluation.sampling import Sampler, turns
from evaluation.stack_report import JUDGE
from models.checkpoints.network_file import load_network
from models.networks.judge import Judge
from models.stack_plan import read_stack
from vocabulary.sampling import GuidanceSchedule

STEPS = 25  # steps of every image
EPS_SCALES = (0.98, 1.0, 1.02, 1.04)
SCALES = (0.0, 1.0, 2.0, 4.0)  # tried scales of a conditional network
UNCONDITIONAL_SCALES = (5.0, 10.0, 20.0, 40.0)
SAMPLERS = {"ddim, eta 1": ("ddim", 1.0), "ddim": ("ddim", 0.0), "dpmpp_2m": ("dpmpp_2m", 0.0), "ddpm": ("ddpm", 0.0)}
TUNING_SEED, REPORTED_SEED = 11, 0
FLAT = 1e-6  # lowest sharpness, in 255ths; pictures of one colour have none
FEWEST, MOST = 16, 200  # images per setting
MAX_ROWS = 16

Figures = dict[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The measured settings of a pipeline."""

    eps_scale: float
    guidance_scale: float
    sampler: str
    eta: float

    def __str__(self) -> str:
        return f"eps_scale {self.eps_scale:g}, guidance scale {self.guidance_scale:g}, {self.sampler_text}"

    @property
    def sampler_text(self) -> str:
        return f"{self.sampler}, eta {self.eta:g}" if self.sampler == "ddim" else self.sampler


class Tuning:
    """Measures one stack's folder within a time limit.

    reference: real images [N, 3, H, W], uint8, held out of training if possible; None without images.
    """

    def __init__(self, folder: Path, reference: Tensor | None, seconds: float, say: Callable[[str], None]) -> None:
        self.doubts: list[str] = []
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        (self.stack,) = load_plans([read_stack(folder)], MAX_ROWS, device, self.doubts.append)
        self.noise_agreement = noise_agreement(self.stack.base.network, process_of(self.stack.base))
        self._sampler = Sampler(Engine(build_stages([self.stack], MAX_ROWS), MAX_ROWS))
        self._reference, self._say, self._seconds = reference, say, seconds
        path = folder / JUDGE
        self._judge = load_network(path, Judge) if path.exists() and reference is not None else None
        self._known = None if self._judge is None or reference is None else judge_images(self._judge, reference)
        self.count = 0

    def measure(self) -> tuple[dict[str, Tuned], Figures]:
        """Measure; return the settings of each pipeline, and all figures."""
        started = time.monotonic()
        names = list(self.stack.pipelines)
        tuned = {name: self._given(name) for name in names}
        self.count = self._affordable(tuned)
        found: Figures = {
            "images": self.count,
            "steps": STEPS,
            "seeds": {"tuned": TUNING_SEED, "reported": REPORTED_SEED},
        }
        if self._reference is not None:
            found["eps_scale"], best = self._best(
                names[0],
                {f"{each:g}": replace(tuned[names[0]], eps_scale=each, sampler="ddim", eta=0.0) for each in EPS_SCALES},
            )
            tuned = {name: replace(each, eps_scale=best.eps_scale) for name, each in tuned.items()}
        if self._judge is not None and self.stack.classifier is not None:
            found["guidance_scale"] = {}
            for name in names:
                scales = SCALES if self.stack.pipelines[name].conditional else UNCONDITIONAL_SCALES
                tried = {f"{each:g}": replace(tuned[name], guidance_scale=each) for each in scales}
                found["guidance_scale"][name], tuned[name] = self._best(name, tried)
        if self._judge is not None:
            tried = {each: replace(tuned[names[0]], sampler=s, eta=eta) for each, (s, eta) in SAMPLERS.items()}
            found["sampler"], best = self._best(names[0], tried)
            tuned = {name: replace(each, sampler=best.sampler, eta=best.eta) for name, each in tuned.items()}
        found["reported"] = {name: self._figures(name, each, REPORTED_SEED) for name, each in tuned.items()}
        found |= {"minutes": round((time.monotonic() - started) / 60, 1), "self_check": self._self_check()}
        return tuned, found | {"reference": self._about_reference(), "not_measured": list(self._not_measured())}

    def _given(self, name: str) -> Tuned:
        spec = self.stack.pipelines[name]
        return Tuned(spec.eps_scale, spec.guidance_scale, spec.sampling.sampler, spec.sampling.eta)

    def _settings(self) -> int:
        """The number of settings to try, including the reported ones."""
        pipelines = len(self.stack.pipelines)
        guided = pipelines * len(SCALES) if self._judge is not None and self.stack.classifier is not None else 0
        samplers = len(SAMPLERS) if self._judge is not None else 0
        return guided + samplers + pipelines + (len(EPS_SCALES) if self._reference is not None else 0)

    def _affordable(self, tuned: Mapping[str, Tuned]) -> int:
        """The number of images per setting that fit the time, estimated from a first batch."""
        name = next(iter(tuned))
        self._images(name, tuned[name], MAX_ROWS, TUNING_SEED)  # warms up tables and caches
        started = time.monotonic()
        self._images(name, tuned[name], MAX_ROWS, TUNING_SEED)
        per_image = (time.monotonic() - started) / MAX_ROWS
        return max(FEWEST, min(MOST, int(self._seconds / self._settings() / per_image)))

    def _images(self, name: str, tuned: Tuned, count: int, seed: int) -> Tensor:
        spec = self.stack.pipelines[name]
        classes = len(self.stack.class_names)
        labels: list[int | None] = list(turns(count, classes)) if classes else [None] * count
        plan = StagePlan(BASE, tuned.sampler, STEPS, eta=tuned.eta, eps_scale=tuned.eps_scale)
        schedule: GuidanceSchedule = spec.guidance_schedule
        return self._sampler.sample(
            Pipeline(spec, self.stack),
            labels,
            tuned.guidance_scale,
            plan,
            seed=seed,
            entropy_scaled=schedule == "entropy",
        ).cpu()

    def _figures(self, name: str, tuned: Tuned, seed: int) -> Figures:
        pixels = self._images(name, tuned, self.count, seed)
        figures: Figures = {"sharpness": round(sharpness(pixels), 3)}
        if self._judge is not None and self._known is not None:
            verdict = judge_images(self._judge, pixels)
            labels = torch.tensor(turns(self.count, len(self.stack.class_names)))
            figures |= {"kid": kernel_distance(verdict, self._known), **verdict.agreement(labels)}
        shown = (f"{each} {figures[each]}" for each in ("kid", "agreement", "sharpness") if each in figures)
        self._say(f"{name}: {tuned}: {', '.join(shown)}")
        return figures

    def _best(self, name: str, tried: Mapping[str, Tuned]) -> tuple[Figures, Tuned]:
        """The figures of each setting, and the best setting."""
        found = {what: self._figures(name, each, TUNING_SEED) for what, each in tried.items()}
        unconditional = not self.stack.pipelines[name].conditional
        best = min(found, key=lambda what: self._cost(found[what], by_agreement=unconditional))
        return found, tried[best]

    def _cost(self, figures: Figures, *, by_agreement: bool) -> tuple[float, float]:
        """The cost, which is lowest for the best setting.

        For a guided unconditional network, agreement with the class counts first, because the network itself has no
        class.
        """
        if "kid" in figures:
            missed = 1 - figures["agreement"]
            return (missed, figures["kid"]) if by_agreement else (figures["kid"], missed)
        assert self._reference is not None
        found, real = (max(each, FLAT) for each in (figures["sharpness"], sharpness(self._reference)))
        return abs(math.log(found / real)), 0.0

    def _self_check(self) -> Figures:
        return {"noise_agreement": round(self.noise_agreement, 4), "doubts": self.doubts}

    def _about_reference(self) -> Figures | None:
        if self._reference is None:
            return None
        return {"images": len(self._reference), "sharpness": round(sharpness(self._reference), 3)}

    def _not_measured(self) -> Iterator[str]:
        if self._reference is None:
            yield "eps_scale: the base's training images no longer exist"
        if self._judge is None:
            yield "sampler, agreement and distance to real images: there is no judge, or there are no images"
            if self.stack.classifier is not None:
                yield "guidance_scale: there is no judge; the scales are those of the paper"
        if self.stack.upsampler is not None:
            yield "the upsampler: its steps and strength are those of the recipe"


def kernel_distance(sample: Verdict, reference: Verdict) -> float:
    """KID of features, times 1,000."""
    blocks = [torch.arange(len(each.features)) for each in (sample, reference)]
    sums = KernelSums.of(sample.features, reference.features, blocks[:1], blocks[1:])
    return round(1000 * sums.whole(), 3)
