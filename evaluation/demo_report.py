"""`adm judge`: measures the demo stack and writes weights/demo/judge.json."""

import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from datasets.shapes import render_set
from engine.engine import Engine
from engine.loading import OnDoubt, load_plans
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.trajectory import StagePlan
from evaluation.inception_score import inception_score
from evaluation.judging import Verdict, add_noise, colour_error, distance, judge_images, sharpness
from evaluation.sampling import Sampler, turns
from models.checkpoints.network_file import load_network
from models.networks.judge import Judge
from models.stack import file_hash
from models.stack_plan import read_stack

EVALUATIONS = 25  # of the network, per image
WAYS = {
    "ddim_eta_1": StagePlan(BASE, "ddim", EVALUATIONS, eta=1.0),
    "ddim_eta_0": StagePlan(BASE, "ddim", EVALUATIONS),
    "dpmpp_2m": StagePlan(BASE, "dpmpp_2m", EVALUATIONS),
    "heun": StagePlan(BASE, "heun", (EVALUATIONS + 1) // 2),
    "ddpm": StagePlan(BASE, "ddpm", EVALUATIONS),
}
UNCONDITIONAL_WAYS = ("ddim_eta_1", "dpmpp_2m", "ddpm")
FRESH_SEED, OTHER_SEED = 1001, 1002  # of renders that nothing was trained on
CONDITIONAL_IMAGES, UNCONDITIONAL_IMAGES, SWEEP_IMAGES, UPSAMPLED_IMAGES = 500, 200, 60, 50
SWEEP_SCALES = (5.0, 10.0, 20.0, 40.0)
NOISES = (2, 8, 32)
SWEEP_SEED, SEED = 1, 0  # different seeds, because a scale looks too good on the images on which it was chosen
MAX_ROWS = 32


class DemoReport:
    """Makes the measurements of the report."""

    def __init__(self, folder: Path, progress: Progress, on_doubt: OnDoubt) -> None:
        self.folder, self.progress = folder, progress
        (self.stack,) = load_plans([read_stack(folder)], MAX_ROWS, torch.device("cpu"), on_doubt)
        self.judge = load_network(folder / "judge.safetensors", Judge)
        self.sampler = Sampler(Engine(build_stages([self.stack], MAX_ROWS), MAX_ROWS), self._stepped)
        size = self.stack.base.network.config.image_size
        self.fresh, self.fresh_labels = render_set(CONDITIONAL_IMAGES, FRESH_SEED, size)
        self.other, _ = render_set(CONDITIONAL_IMAGES, OTHER_SEED, size)
        self.fresh_verdict = judge_images(self.judge, self.fresh)
        self._bar = progress.add_task("")

    def _stepped(self, rows: int) -> None:
        self.progress.advance(self._bar, rows)

    def measure(self) -> dict[str, Any]:
        """Make all measurements, in the order of the report."""
        started = time.time()
        conditional = {way: self._conditional(way) for way in WAYS}
        report = {
            "evaluations": EVALUATIONS,
            "eps_scale": {name: spec.eps_scale for name, spec in self.stack.pipelines.items()},
            "judge_on_fresh_renders": self._judge_itself(),
            "fid_scale": self._fid_scale(),
            "sharpness_of_renders": round(sharpness(self.fresh), 3),
            "conditional": conditional,
            "unconditional": {way: self._unconditional(way) for way in UNCONDITIONAL_WAYS},
            "upsampled": self._upsampled(),
        }
        return report | {
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "minutes": round((time.time() - started) / 60, 1),
            "hashes": {path.stem: file_hash(path) for path in sorted(self.folder.glob("*.safetensors"))},
        }

    def _images(
        self, name: str, labels: list[int | None], way: str, scale: float, *, what: str, seed: int = SEED
    ) -> Tensor:
        self.progress.reset(self._bar, total=len(labels) * EVALUATIONS, description=what)
        pipeline = Pipeline(self.stack.pipelines[name], self.stack)
        plan = replace(WAYS[way], eps_scale=pipeline.spec.eps_scale)
        entropy_scaled = pipeline.spec.guidance_schedule == "entropy"
        return self.sampler.sample(pipeline, labels, scale, plan, seed=seed, entropy_scaled=entropy_scaled)

    def _judge_itself(self) -> dict[str, Any]:
        pixels, labels = render_set(2000, FRESH_SEED, self.judge.config.image_size)
        return judge_images(self.judge, pixels).agreement(labels)

    def _fid_scale(self) -> dict[str, float]:
        """FIDs of known sets, for comparison with those of samples."""
        scale = {"another_set_of_renders": distance(self.fresh_verdict, judge_images(self.judge, self.other))}
        for noise in NOISES:
            noisy = judge_images(self.judge, add_noise(self.other, noise, seed=noise))
            scale[f"renders_with_noise_{noise}_of_255"] = distance(self.fresh_verdict, noisy)
        return scale

    def _conditional(self, way: str) -> dict[str, Any]:
        spec = self.stack.pipelines["demo"]
        scale = spec.guidance_scale
        labels = turns(CONDITIONAL_IMAGES, len(self.stack.class_names))
        what = f"conditional, {way}, scale {scale:g}"
        pixels = self._images("demo", list(labels), way, scale, what=what)
        verdict = judge_images(self.judge, pixels)
        return (
            {"guidance_scale": scale, "guidance_schedule": spec.guidance_schedule, "steps": WAYS[way].num_steps}
            | verdict.agreement(torch.tensor(labels))
            | verdict.closeness(self.fresh_verdict)
            | {
                "inception_score": round(inception_score(verdict.probabilities), 3),
                "sharpness": round(sharpness(pixels), 3),
            }
        )

    def _unconditional(self, way: str) -> dict[str, Any]:
        sweep = {scale: self._steered(way, scale, SWEEP_IMAGES, SWEEP_SEED)["agreement"] for scale in SWEEP_SCALES}
        best = max(sweep, key=lambda scale: sweep[scale])
        return {
            "guidance_schedule": self.stack.pipelines["demo-uncond"].guidance_schedule,
            "sweep": {f"{scale:g}": agreement for scale, agreement in sweep.items()},
            "scale_0": self._steered(way, 0.0, UNCONDITIONAL_IMAGES),
            "best": {"guidance_scale": best} | self._steered(way, best, UNCONDITIONAL_IMAGES),
        }

    def _steered(self, way: str, scale: float, count: int, seed: int = SEED) -> dict[str, Any]:
        labels = turns(count, len(self.stack.class_names))
        what = f"unconditional, {way}, scale {scale:g}"
        verdict: Verdict = judge_images(
            self.judge, self._images("demo-uncond", list(labels), way, scale, what=what, seed=seed)
        )
        return verdict.agreement(torch.tensor(labels))

    def _upsampled(self) -> dict[str, Any]:
        spec = self.stack.pipelines["demo"]
        assert spec.upsampling is not None
        pipeline, labels = Pipeline(spec, self.stack), turns(UPSAMPLED_IMAGES, len(self.stack.class_names))
        sampling = spec.sampling
        base = StagePlan(BASE, sampling.sampler, sampling.steps, sampling.eta, eps_scale=spec.eps_scale)
        asked = spec.upsampling
        upsample = StagePlan(UPSAMPLE, asked.sampler, asked.steps, asked.eta, strength=asked.strength)
        steps = 2 * base.num_evaluations + upsample.num_evaluations
        self.progress.reset(self._bar, total=len(labels) * steps, description="upsampled")
        scale, by_entropy = spec.guidance_scale, spec.guidance_schedule == "entropy"
        small = self.sampler.sample(pipeline, labels, scale, base, entropy_scaled=by_entropy)
        large = self.sampler.sample(pipeline, labels, scale, base, upsample, entropy_scaled=by_entropy)
        bicubic = F.interpolate(small.float(), large.shape[2:], mode="bicubic").round().clamp(0, 255)
        truth = torch.tensor(labels)
        return {
            "upsampler_steps": upsample.num_evaluations,
            "colour_error": round(colour_error(small, large), 3),
            "base": judge_images(self.judge, small).agreement(truth),
            "upsampled": judge_images(self.judge, large).agreement(truth),
            "sharpness_mean_abs_laplacian": {
                "upsampled": round(sharpness(large), 3),
                "bicubic": round(sharpness(bicubic.to(torch.uint8)), 3),
                "renders": round(sharpness(render_set(UPSAMPLED_IMAGES, FRESH_SEED, large.shape[-1])[0]), 3),
            },
        }


def write_report(folder: Path, on_doubt: OnDoubt) -> Path:
    """Measure a stack folder and write its judge.json; on_doubt gets the findings of the self-check.

    Raises: WeightsError.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        report = DemoReport(folder, progress, on_doubt).measure()
    path = folder / "judge.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path
