"""`adm evaluate stack`: measures the images of a stack's pipelines with its judge, against real images."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.shapes import render_set
from engine.engine import Engine
from engine.loading import OnDoubt, load_plans
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.trajectory import StagePlan
from evaluation.inception_score import inception_score
from evaluation.judging import Verdict, add_noise, colour_error, distance, judge_images, sharpness
from evaluation.machine import machine, versions
from evaluation.report import Watch
from evaluation.sampling import Sampler, turns
from files.checkout import commit
from models.checkpoints.network_file import load_network
from models.checkpoints.presets import SHAPE_NAMES
from models.networks.judge import Judge
from models.networks.precision import best_precision
from models.stack import file_hash
from models.stack_plan import PipelineSpec, StackPlan

JUDGE = "judge.safetensors"
EVALUATIONS = 25  # of the network, per image
SAMPLER_PLANS = {
    "ddim_eta_1": StagePlan(BASE, "ddim", EVALUATIONS, eta=1.0),
    "ddim_eta_0": StagePlan(BASE, "ddim", EVALUATIONS),
    "dpmpp_2m": StagePlan(BASE, "dpmpp_2m", EVALUATIONS),
    "heun": StagePlan(BASE, "heun", (EVALUATIONS + 1) // 2),
    "ddpm": StagePlan(BASE, "ddpm", EVALUATIONS),
}
"""Every sampler, DDIM at both ends of its eta."""
UNCONDITIONAL_SHARE, UPSAMPLED_SHARE, SWEEP_SHARE = 0.4, 0.1, 0.12  # of --images; these settings are many, or take long
SWEEP_SCALES = (5.0, 10.0, 20.0, 40.0)
NOISES = (2, 8, 32)  # deviations, in 255ths
SWEEP_SEED, SEED = 1, 0  # different seeds, because a scale looks too good on the images on which it was chosen
MAX_ROWS = 32
NAMES_SHOWN = 3  # class names in an error


@dataclass(frozen=True)
class RealImages:
    """Images that no network of a stack was trained on.

    Shapes: pixels [N, 3, H, W], uint8, of the base's size; class_labels [N]; large like pixels, of the upsampler's
    size, or None if there are none of it. class_names: of the whole set, because few images may lack a class.
    """

    source: str
    pixels: Tensor
    class_labels: Tensor
    class_names: tuple[str, ...]
    large: Tensor | None = None


def rendered(source: str, seed: int, plan: StackPlan, images: int) -> RealImages:
    """Renders for a stack of shapes: two sets of `images`. Raises: ValueError if its classes are not the shapes."""
    if plan.class_names != SHAPE_NAMES:
        raise ValueError(f"{source}: the classes of {plan.name} are no shapes ({named(plan)}); name a training run")
    pixels, labels = render_set(2 * images, seed, plan.base.config.image_size)
    large = None
    if plan.upsampler is not None:
        large, _ = render_set(share(images, UPSAMPLED_SHARE), seed, plan.upsampler.config.image_size)
    return RealImages(source, pixels, labels, SHAPE_NAMES, large)


def of_pipeline(plan: StagePlan, spec: PipelineSpec) -> StagePlan:
    """A plan of the base with the pipeline's eps_scale and time grid."""
    return replace(plan, eps_scale=spec.eps_scale, time_grid=spec.time_grids.get(plan.sampler))


class StackReport:
    """Makes the measurements of a stack."""

    def __init__(self, plan: StackPlan, real: RealImages, images: int, watch: Watch, on_doubt: OnDoubt) -> None:
        """Load the stack and measure the real images.

        images: of each sampler of a conditional pipeline; other settings have a share of them.
        Raises: WeightsError; ValueError, one line, for a judge or real images of other classes than the stack's.
        """
        watch.on_part(f"loading {plan.name}", 1)
        self._folder, self._images, self._watch = plan.base.path.parent, images, watch
        self._judge = load_network(self._folder / JUDGE, Judge)
        judged, classes = self._judge.config.num_classes, len(plan.class_names)
        if judged != classes:
            raise ValueError(f"{JUDGE}: has {judged} classes, and the stack {plan.name} has {classes}")
        if real.class_names != plan.class_names:
            theirs, ours = (named(each) for each in (real, plan))
            raise ValueError(f"{real.source}: its classes ({theirs}) are not those of the stack {plan.name} ({ours})")
        size = plan.base.config.image_size
        if real.pixels.shape[-1] != size:
            raise ValueError(f"{real.source}: has images of {real.pixels.shape[-1]} px, and the base makes {size} px")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._precision = best_precision(device)
        (self._stack,) = load_plans([plan], MAX_ROWS, device, on_doubt)
        engine = Engine(build_stages([self._stack], MAX_ROWS, precision=self._precision), MAX_ROWS)
        self._sampler = Sampler(engine, watch.on_images)
        self._real = real
        self._real_verdict = judge_images(self._judge, real.pixels)
        self._one, self._other = halves(real.class_labels)
        self._reference = self._real_verdict.of(self._one)

    def measure(self) -> dict[str, Any]:
        """Make all measurements, in the order of the report."""
        started = time.monotonic()
        specs = self._stack.pipelines
        pipelines = {
            name: {sampler: self._measured(spec, sampler) for sampler in SAMPLER_PLANS} for name, spec in specs.items()
        }
        upsampling = next((spec for spec in specs.values() if spec.upsampling is not None), None)
        report = {
            "stack": self._stack.name,
            "evaluations": EVALUATIONS,
            "eps_scale": {name: spec.eps_scale for name, spec in specs.items()},
            "reference": {"source": self._real.source, "images": len(self._one)},
            "judge_on_reference": self._real_verdict.agreement(self._real.class_labels),
            "fid_scale": self._fid_scale(),
            "sharpness_of_reference": round(sharpness(self._real.pixels[self._one]), 3),
            "pipelines": pipelines,
            "upsampled": None if upsampling is None else self._upsampled(upsampling),
        }
        return report | {
            "precision": self._precision,
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "minutes": round((time.monotonic() - started) / 60, 1),
            "hashes": {path.stem: file_hash(path) for path in sorted(self._folder.glob("*.safetensors"))},
        }

    def _fid_scale(self) -> dict[str, float]:
        """FIDs of real images, for comparison with those of samples."""
        scale = {"another_set": distance(self._reference, self._real_verdict.of(self._other))}
        for noise in NOISES:
            noisy = judge_images(self._judge, add_noise(self._real.pixels[self._other], noise, seed=noise))
            scale[f"another_set_with_noise_{noise}_of_255"] = distance(self._reference, noisy)
        return scale

    def _measured(self, spec: PipelineSpec, sampler: str) -> dict[str, Any]:
        """The figures of one sampler at the pipeline's scale; if it is unconditional, at scale 0 and the best scale."""
        if spec.conditional:
            return self._figures(spec, sampler, spec.guidance_scale, self._images)
        count = share(self._images, UNCONDITIONAL_SHARE)
        found = {"guidance_schedule": spec.guidance_schedule, "scale_0": self._figures(spec, sampler, 0.0, count)}
        if self._stack.classifier is None:
            return found
        tried = share(self._images, SWEEP_SHARE)
        sweep = {scale: self._judged(spec, sampler, scale, tried, SWEEP_SEED)[1] for scale in SWEEP_SCALES}
        agreement = {scale: verdict.agreement(self._labels(tried))["agreement"] for scale, verdict in sweep.items()}
        best = max(agreement, key=agreement.__getitem__)
        return found | {
            "sweep": {f"{scale:g}": each for scale, each in agreement.items()},
            "best": self._figures(spec, sampler, best, count),
        }

    def _figures(self, spec: PipelineSpec, sampler: str, scale: float, count: int) -> dict[str, Any]:
        pixels, verdict = self._judged(spec, sampler, scale, count, SEED)
        return (
            {
                "guidance_scale": scale,
                "guidance_schedule": spec.guidance_schedule,
                "steps": SAMPLER_PLANS[sampler].num_steps,
            }
            | verdict.agreement(self._labels(count))
            | verdict.closeness(self._reference)
            | {
                "inception_score": round(inception_score(verdict.probabilities), 3),
                "sharpness": round(sharpness(pixels), 3),
            }
        )

    def _judged(self, spec: PipelineSpec, sampler: str, scale: float, count: int, seed: int) -> tuple[Tensor, Verdict]:
        what = f"{spec.name}, {sampler}, scale {scale:g}"
        pixels = self._sampled(spec, scale, count, of_pipeline(SAMPLER_PLANS[sampler], spec), what=what, seed=seed)
        return pixels, judge_images(self._judge, pixels)

    def _sampled(
        self,
        spec: PipelineSpec,
        scale: float,
        count: int,
        base: StagePlan,
        upsample: StagePlan | None = None,
        *,
        what: str,
        seed: int = SEED,
    ) -> Tensor:
        evaluations = base.num_evaluations + (0 if upsample is None else upsample.num_evaluations)
        self._watch.on_part(what, count * evaluations)
        labels: list[int | None] = self._labels(count).tolist()
        by_entropy = spec.guidance_schedule == "entropy"
        pipeline = Pipeline(spec, self._stack)
        pixels = self._sampler.sample(pipeline, labels, scale, base, upsample, seed=seed, entropy_scaled=by_entropy)
        return pixels.cpu()

    def _labels(self, count: int) -> Tensor:
        return torch.tensor(turns(count, len(self._stack.class_names)))

    def _upsampled(self, spec: PipelineSpec) -> dict[str, Any]:
        """The pipeline's own settings in both stages, and the same images before upsampling."""
        assert spec.upsampling is not None
        sampling, enlarging, count = spec.sampling, spec.upsampling, share(self._images, UPSAMPLED_SHARE)
        base = of_pipeline(StagePlan(BASE, sampling.sampler, sampling.steps, sampling.eta), spec)
        upsample = StagePlan(UPSAMPLE, enlarging.sampler, enlarging.steps, enlarging.eta, strength=enlarging.strength)
        small = self._sampled(spec, spec.guidance_scale, count, base, what=f"{spec.name}, before upsampling")
        large = self._sampled(spec, spec.guidance_scale, count, base, upsample, what=f"{spec.name}, upsampled")
        bicubic = F.interpolate(small.float(), large.shape[2:], mode="bicubic").round().clamp(0, 255)
        known = {} if self._real.large is None else {"reference": round(sharpness(self._real.large), 3)}
        return {
            "pipeline": spec.name,
            "upsampler_steps": upsample.num_evaluations,
            "colour_error": round(colour_error(small, large), 3),
            "base": judge_images(self._judge, small).agreement(self._labels(count)),
            "upsampled": judge_images(self._judge, large).agreement(self._labels(count)),
            "sharpness_mean_abs_laplacian": {
                "upsampled": round(sharpness(large), 3),
                "bicubic": round(sharpness(bicubic.to(torch.uint8)), 3),
            }
            | known,
        }


def named(classed: StackPlan | RealImages) -> str:
    """The first class names, and the number of all."""
    names = classed.class_names
    return (
        f"{', '.join(names[:NAMES_SHOWN])}, ... {len(names)} in all" if len(names) > NAMES_SHOWN else ", ".join(names)
    )


def share(images: int, of_them: float) -> int:
    """The number of images of a setting that has only a share of them."""
    return round(images * of_them)


def halves(class_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of two halves with the classes in equal shares, whatever the order of the images."""
    by_class = class_labels.argsort(stable=True)
    return by_class[0::2], by_class[1::2]


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The figures of every sampler, one line each, and those of the real images."""
    yield f"{'':42}{'images':>7}{'judge agrees':>24}{'FID':>9}{'precision':>11}{'recall':>8}{'sharpness':>11}"
    another_set = report["fid_scale"]["another_set"]
    yield f"{_agreement('real: ' + report['reference']['source'], report['judge_on_reference'])}{another_set:9.4f}"
    for name, samplers in report["pipelines"].items():
        for sampler, found in samplers.items():
            for each in _settings(found):
                line = _agreement(f"{name}, {sampler}, scale {each['guidance_scale']:g}", each)
                shares = f"{each['precision']:11.3f}{each['recall']:8.3f}"
                yield f"{line}{each['fid']:9.4f}{shares}{each['sharpness']:11.2f}"
    if (upsampled := report["upsampled"]) is not None:
        for stage in ("base", "upsampled"):
            yield _agreement(f"{upsampled['pipeline']}, {stage}", upsampled[stage])


def _settings(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of a sampler: of a conditional pipeline one set, of an unconditional one those of two scales."""
    return [found[each] for each in ("scale_0", "best") if each in found] or [found]


def _agreement(what: str, found: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in found["agreement_95"])
    agrees = f"{100 * found['agreement']:.1f} % ({low:.1f} to {high:.1f})"
    return f"{what:42}{found['images']:7}{agrees:>24}"
