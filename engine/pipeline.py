"""Pipelines in the engine: the stages that an image passes, and its labels in each stage."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from diffusion.noise import Draw, normals
from engine.compiling import Compiler
from engine.diffusion_process import process_of
from engine.guide import Guide
from engine.kept_shapes import KeptShapes
from engine.lanes import Lanes
from engine.numerics import settle_kernels
from engine.shape_choice import choose_shapes
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.threads import usable_threads
from engine.trajectory import FromLatent, FromPicture, Guidance, ImageRequest, StagePlans
from models.stack import Stack
from models.stack_plan import PipelineSpec
from vocabulary.precisions import Precision
from vocabulary.priorities import Priority

BASE, UPSAMPLE = "base", "upsample"
BASE_NUMBER, UPSAMPLE_NUMBER = 0, 1  # the stages' numbers in the keys of noise


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of a loaded stack."""

    spec: PipelineSpec
    stack: Stack

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of its jobs, in order."""
        return (BASE,) if self.spec.upsampling is None else (BASE, UPSAMPLE)

    @property
    def stage_keys(self) -> tuple[str, ...]:
        return tuple(map(self.stage_key, self.stage_names))

    def stage_key(self, name: str) -> str:
        """The engine's key of a stage; it contains the stack's name, because each stack in an engine has a base."""
        return f"{self.stack.name}/{name}"

    @property
    def determinants(self) -> dict[str, Any]:
        """The facts about the stack that, with a request, determine an image; JSON values for `numerics.fingerprint`.

        The files' hashes do not suffice: stack.json states the diffusion processes and whether images have a class.
        """
        stack, guide = self.stack, self.stack.classifier
        upsampler = stack.upsampler if UPSAMPLE in self.stage_names else None
        diffusion = [each for each in (stack.base, upsampler) if each is not None]
        return {
            "conditional": self.spec.conditional,
            "no_class_label": stack.no_class_label,
            "diffusion": [[each.model_hash, asdict(each.network.config), asdict(each.process)] for each in diffusion],
            "classifier": None if guide is None else [guide.model_hash, asdict(guide.network.config)],
        }

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
        guidance: Guidance,
        plans: StagePlans,
        *,
        start: FromPicture | FromLatent | None = None,
        wants_previews: bool = False,
        priority: Priority = "normal",
    ) -> ImageRequest:
        """One image of a job, through the stages whose plans are given.

        The plans' stages are BASE, also for an encoding, and UPSAMPLE. Only the base is guided, so an image that passes
        only the upsampler is not guided at any scale.
        """
        label = guidance.class_label if self.spec.conditional else None
        return ImageRequest(
            job_id=job_id,
            index=index,
            seed=seed,
            plans=tuple(replace(plan, stage=self.stage_key(plan.stage)) for plan in plans.in_order),
            network_label=self.stack.no_class_label if label is None else label,
            guidance_target=guidance.target,
            guidance_scale=0.0 if plans.base is None else guidance.scale,
            guidance_interval=guidance.interval,
            entropy_scaled=guidance.entropy_scaled,
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
    existing: Collection[str] = (),
    kept: KeptShapes | None = None,
) -> dict[str, Stage]:
    """All stages of the stacks by key, warmed up, and compiled if a compiler is given.

    guides: guides of base stages by key, in place of the stack's classifier. threads: number of threads on a CPU; None
    for all usable ones. existing: keys of stages that exist already and are skipped. kept: row shapes of earlier
    starts; stages found there are not compared again. Raises: WrongCodeError.
    """
    settle_kernels()
    if compiler is not None:
        compiler.begin()
    stages: dict[str, Stage] = {}
    hashes: dict[str, Sequence[str]] = {}
    cpu_lanes = Lanes(threads or usable_threads())
    for stack in stacks:
        device = next(stack.base.network.parameters()).device
        lanes = cpu_lanes if device.type == "cpu" else Lanes()
        base, upsampler, key = stack.base, stack.upsampler, f"{stack.name}/{BASE}"
        guide = (guides or {}).get(key)
        if guide is None and stack.classifier is not None:
            guide = Guide.of_classifier(stack.classifier.network)
        networks = partial(StageNetworks, precision=precision, compiler=compiler, lanes=lanes)
        if key not in existing:
            stages[key] = Stage(BASE_NUMBER, networks(BASE, base.network, guide), process_of(base))
        key = f"{stack.name}/{UPSAMPLE}"
        if upsampler is not None and key not in existing:
            stages[key] = Stage(UPSAMPLE_NUMBER, networks(UPSAMPLE, upsampler.network), process_of(upsampler))
        hashes |= {f"{stack.name}/{name}": stack.hashes for name in (BASE, UPSAMPLE)}
    for key, stage in stages.items():
        stage.networks.prepare(max_rows, stage.rehearsal())
        if kept is None:
            choose_shapes(stage, max_rows)
        else:
            kept.choose(stage, max_rows, hashes[key])
    if compiler is not None:
        compiler.finish()
    return stages
