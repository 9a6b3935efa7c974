"""Describes a worker's pipelines in the form that it announces to the queue."""

from collections.abc import Sequence

from engine.pipeline import Pipeline
from jobs.contract.errors import SettingsError
from jobs.contract.kinds import KINDS
from jobs.contract.pipelines import (
    ClassInfo,
    Defaults,
    FloatRange,
    IntRange,
    Limits,
    PipelineInfo,
    StageInfo,
    UpsampleDefaults,
)
from jobs.contract.samplers import SAMPLER_NOTES
from models.stack import Stack
from vocabulary.sampling import MAX_GUIDANCE_SCALE, SAMPLERS, THRESHOLDINGS, TIME_GRIDS


def select(names: Sequence[str], stacks: Sequence[Stack]) -> dict[str, Pipeline]:
    """The pipelines of these names. Raises: SettingsError for a name that no stack has."""
    known = {name: Pipeline(spec, stack) for stack in stacks for name, spec in stack.pipelines.items()}
    for name in names:
        if name not in known:
            raise SettingsError(
                f"ADM_PIPELINES: no stack has a pipeline {name!r}; there are {', '.join(sorted(known))}"
            )
    return {name: known[name] for name in names}


def offer(pipeline: Pipeline) -> PipelineInfo:
    """The announcement of a pipeline."""
    spec, stack = pipeline.spec, pipeline.stack
    base, upsampler = stack.base, stack.upsampler
    upsampling = None
    if spec.upsampling is not None and upsampler is not None:
        upsampling = UpsampleDefaults(
            steps=spec.upsampling.steps,
            sampler=spec.upsampling.sampler,
            eta=spec.upsampling.eta,
            strength=spec.upsampling.strength,
        )
    stages = stages_of(pipeline)
    return PipelineInfo(
        id=spec.name,
        classes=tuple(ClassInfo(index=index, name=name) for index, name in enumerate(stack.class_names)),
        stages=stages,
        image_size=stages[-1].image_size,
        kinds=kinds(pipeline),
        samplers=SAMPLERS,
        sampler_notes=SAMPLER_NOTES,
        time_grids=TIME_GRIDS,
        thresholdings=THRESHOLDINGS,
        limits=Limits(
            steps=IntRange(min=1, max=base.process.num_timesteps),
            guidance_scale=FloatRange(min=0, max=0 if stack.classifier is None else MAX_GUIDANCE_SCALE),
        ),
        defaults=Defaults(
            sampler=spec.sampling.sampler,
            steps=spec.sampling.steps,
            eta=spec.sampling.eta,
            guidance_scale=spec.guidance_scale,
            guidance_schedule=spec.guidance_schedule,
            eps_scale=spec.eps_scale,
            time_grids=dict(spec.time_grids),
            upsample=upsampling,
        ),
        class_required=spec.class_required,
        no_class_offered=not spec.conditional or stack.no_class_label is not None,
        num_timesteps=base.process.num_timesteps,
    )


def stages_of(pipeline: Pipeline) -> tuple[StageInfo, ...]:
    """The announcements of the base and, if the pipeline upsamples, of the upsampler."""
    spec, stack = pipeline.spec, pipeline.stack
    base, upsampler = stack.base, stack.upsampler
    first = StageInfo(
        name="base",
        image_size=base.network.config.image_size,
        model_hash=base.model_hash,
        classifier_hash=None if stack.classifier is None else stack.classifier.model_hash,
        samplers=SAMPLERS,
        class_conditional=spec.conditional,
        num_timesteps=base.process.num_timesteps,
    )
    if spec.upsampling is None or upsampler is None:
        return (first,)
    second = StageInfo(
        name="upsample",
        image_size=upsampler.network.config.image_size,
        model_hash=upsampler.model_hash,
        samplers=SAMPLERS,
        class_conditional=spec.conditional and upsampler.network.config.num_classes is not None,
        num_timesteps=upsampler.process.num_timesteps,
    )
    return first, second


def kinds(pipeline: Pipeline) -> tuple[str, ...]:
    """The kinds of jobs that a pipeline's stages can do."""
    lacking = {"upsample"} if pipeline.spec.upsampling is None else set()
    if pipeline.stack.classifier is None:
        lacking.add("score")
    return tuple(kind for kind in KINDS if kind not in lacking)
