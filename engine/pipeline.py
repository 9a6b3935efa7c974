"""Pipelines as the engine runs them: which stages an image passes, and which labels it carries through them."""

from collections.abc import Iterable
from dataclasses import dataclass

from diffusion.process import Process
from diffusion.schedule import Schedule
from engine.numerics import settle_kernels
from engine.stage import Stage
from engine.trajectory import ImageRequest, StagePlan
from models.stack import DiffusionNetwork, PipelineSpec, Stack

BASE, UPSAMPLE = "base", "upsample"


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of a loaded stack."""

    spec: PipelineSpec
    stack: Stack

    def stage_key(self, name: str) -> str:
        """The engine's key of a stage: two stacks in one engine each have a base."""
        return f"{self.stack.name}/{name}"

    def image(
        self,
        job_id: str,
        index: int,
        seed: int,
        class_label: int | None,
        guidance_scale: float,
        base: StagePlan,
        upsample: StagePlan | None,
        *,
        guidance_interval: tuple[int, int] = (0, 1000),
        wants_previews: bool = False,
    ) -> ImageRequest:
        """One image of a job. The plans' stages are BASE and UPSAMPLE."""
        plans = [base] if upsample is None else [base, upsample]
        label = class_label if self.spec.conditional and class_label is not None else self.stack.no_class_label
        return ImageRequest(
            job_id=job_id,
            index=index,
            seed=seed,
            plans=tuple(StagePlan(self.stage_key(p.stage), p.sampler, p.num_steps, p.eta) for p in plans),
            network_label=label,
            guidance_label=class_label,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            wants_previews=wants_previews,
        )


def build_stages(stacks: Iterable[Stack], max_rows: int, *, bf16: bool = False) -> dict[str, Stage]:
    """Every stage of the stacks by its key, warmed up."""
    settle_kernels()
    stages: dict[str, Stage] = {}
    for stack in stacks:
        base, upsampler = stack.base, stack.upsampler
        classifier = None if stack.classifier is None else stack.classifier.network
        stages[f"{stack.name}/{BASE}"] = Stage(BASE, 0, base.network, _process(base), classifier, bf16=bf16)
        if upsampler is not None:
            stages[f"{stack.name}/{UPSAMPLE}"] = Stage(UPSAMPLE, 1, upsampler.network, _process(upsampler), bf16=bf16)
    for stage in stages.values():
        stage.warm_up(max_rows)
    return stages


def _process(network: DiffusionNetwork) -> Process:
    return Process(Schedule.named(network.schedule, network.num_timesteps))
