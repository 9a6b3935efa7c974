"""Pipelines as the engine runs them: which stages an image passes, and which labels it carries through them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from diffusion.noise import Draw, normals
from engine.compiling import Compiler
from engine.guide import Guide
from engine.lanes import Lanes
from engine.numerics import settle_kernels
from engine.process import process_of
from engine.scheduler import Priority
from engine.stage import Stage
from engine.threads import usable_threads
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan
from models.networks.precision import Precision
from models.plan import PipelineSpec
from models.stack import Stack

BASE, UPSAMPLE = "base", "upsample"
BASE_NUMBER, UPSAMPLE_NUMBER = 0, 1  # of the stages, in the address of noise


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of a loaded stack."""

    spec: PipelineSpec
    stack: Stack

    def stage_key(self, name: str) -> str:
        """The engine's key of a stage: two stacks in one engine each have a base."""
        return f"{self.stack.name}/{name}"

    def starting_noise(self, seed: int) -> Tensor:
        """x_T [3, H, W] of a base image of index 0."""
        network = self.stack.base.network
        size, device = network.config.image_size, next(network.parameters()).device
        return normals([Draw(seed, 0, BASE_NUMBER, 0)], (3, size, size), device)[0]

    def image(
        self,
        job_id: str,
        index: int,
        seed: int,
        class_label: int | None,
        guidance_scale: float,
        base: StagePlan | None,
        upsample: StagePlan | None,
        *,
        encode: StagePlan | None = None,
        start: FromPicture | FromLatent | None = None,
        guidance_interval: tuple[int, int] | None = None,
        class_weights: Mapping[int, float] | None = None,
        entropy_scaled: bool = False,
        wants_previews: bool = False,
        priority: Priority = "normal",
    ) -> ImageRequest:
        """One image of a job: through the stages whose plans are given, an encoding before them.

        The plans' stages are BASE, of an encoding too, and UPSAMPLE; class_weights steer instead of class_label.
        Only the base is guided: an image without it, through the upsampler alone, is not, whatever its scale.
        """
        plans = [plan for plan in (encode, base, upsample) if plan is not None]
        if class_weights is None:
            class_weights = {} if class_label is None else {class_label: 1.0}
        label = class_label if self.spec.conditional and class_label is not None else self.stack.no_class_label
        return ImageRequest(
            job_id=job_id,
            index=index,
            seed=seed,
            plans=tuple(replace(plan, stage=self.stage_key(plan.stage)) for plan in plans),
            network_label=label,
            guidance_target=tuple(sorted(class_weights.items())),
            guidance_scale=0.0 if base is None else guidance_scale,
            guidance_interval=guidance_interval,
            entropy_scaled=entropy_scaled,
            start=start,
            wants_previews=wants_previews,
            priority=priority,
        )


def build_stages(
    stacks: Iterable[Stack],
    max_rows: int,
    *,
    precision: Precision = "fp32",
    guides: Mapping[str, Guide] | None = None,
    compiler: Compiler | None = None,
    threads: int | None = None,
) -> dict[str, Stage]:
    """Every stage of the stacks by its key, warmed up, compiled by the compiler where one is given.

    guides steer the base stages of their keys, in place of the stack's classifier. threads compute on a CPU; None for
    as many as are usable.
    """
    settle_kernels()
    if compiler is not None:
        compiler.begin()
    stages: dict[str, Stage] = {}
    cpu_lanes = Lanes(threads or usable_threads())
    for stack in stacks:
        device = next(stack.base.network.parameters()).device
        lanes = cpu_lanes if device.type == "cpu" else Lanes()
        base, upsampler, key = stack.base, stack.upsampler, f"{stack.name}/{BASE}"
        guide = (guides or {}).get(key)
        if guide is None and stack.classifier is not None:
            guide = Guide.of_classifier(stack.classifier.network)
        build = partial(Stage, precision=precision, compiler=compiler, lanes=lanes)
        stages[key] = build(BASE, BASE_NUMBER, base.network, process_of(base), guide)
        if upsampler is not None:
            upsample = build(UPSAMPLE, UPSAMPLE_NUMBER, upsampler.network, process_of(upsampler))
            stages[f"{stack.name}/{UPSAMPLE}"] = upsample
    for stage in stages.values():
        stage.warm_up(max_rows)
    if compiler is not None:
        compiler.finish()
    return stages
