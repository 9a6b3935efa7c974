"""What this worker offers, as the queue knows it, and a job's request as the engine knows it."""

from collections.abc import Mapping, Sequence

from diffusion.grids import TIME_GRIDS
from diffusion.tables import THRESHOLDINGS
from engine.pipeline import BASE, UPSAMPLE, Pipeline
from engine.stage import SAMPLERS, UnknownOfferError
from engine.trajectory import ImageRequest, StagePlan
from jobs.pipelines import ClassInfo, Defaults, FloatRange, Limits, PipelineInfo, StageInfo, UpsampleDefaults
from jobs.request import ResolvedRequest, ResolvedUpsample
from jobs.samplers import SAMPLER_NOTES
from models.checkpoint import WeightsError
from models.stack import MANIFEST, Stack


def select(names: Sequence[str], stacks: Sequence[Stack]) -> dict[str, Pipeline]:
    """The pipelines of these names. Raises: WeightsError for a name that no stack has, or an unknown sampler in one."""
    known = {name: Pipeline(spec, stack) for stack in stacks for name, spec in stack.pipelines.items()}
    for name in names:
        if name not in known:
            raise WeightsError(f"ADM_PIPELINES: no stack has a pipeline {name!r}; there are {', '.join(sorted(known))}")
        spec = known[name].spec
        for defaults in filter(None, (spec.sampling, spec.upsampling)):
            if defaults.sampler not in SAMPLERS:
                raise WeightsError(f"{MANIFEST}: the pipeline {name!r} has an unknown sampler {defaults.sampler!r}")
    return {name: known[name] for name in names}


def offer(pipeline: Pipeline) -> PipelineInfo:
    """What a pipeline announces."""
    spec, stack = pipeline.spec, pipeline.stack
    base, upsampler = stack.base, stack.upsampler
    stages = [
        StageInfo(
            name="base",
            image_size=base.network.config.image_size,
            model_hash=base.model_hash,
            classifier_hash=None if stack.classifier is None else stack.classifier.model_hash,
            samplers=SAMPLERS,
        )
    ]
    upsampling = None
    if spec.upsampling is not None and upsampler is not None:
        stages.append(
            StageInfo(
                name="upsample",
                image_size=upsampler.network.config.image_size,
                model_hash=upsampler.model_hash,
                samplers=SAMPLERS,
            )
        )
        upsampling = UpsampleDefaults(
            steps=spec.upsampling.steps, sampler=spec.upsampling.sampler, eta=spec.upsampling.eta
        )
    return PipelineInfo(
        id=spec.name,
        classes=tuple(ClassInfo(index=index, name=name) for index, name in enumerate(stack.class_names)),
        stages=tuple(stages),
        image_size=stages[-1].image_size,
        samplers=SAMPLERS,
        sampler_notes=SAMPLER_NOTES,
        time_grids=TIME_GRIDS,
        thresholdings=THRESHOLDINGS,
        limits=Limits() if stack.classifier is not None else Limits(guidance_scale=FloatRange(min=0, max=0)),
        defaults=Defaults(
            sampler=spec.sampling.sampler,
            steps=spec.sampling.steps,
            eta=spec.sampling.eta,
            guidance_scale=spec.guidance_scale,
            upsample=upsampling,
        ),
        class_required=spec.class_required,
        no_class_offered=not spec.conditional or stack.no_class_label is not None,
        num_timesteps=base.num_timesteps,
    )


def images_of(job_id: str, request: ResolvedRequest, pipelines: Mapping[str, Pipeline]) -> list[ImageRequest]:
    """The images that a job asks for, as the engine takes them.

    Raises: UnknownOfferError for a pipeline or class that this worker does not have.
    """
    if request.model not in pipelines:
        raise UnknownOfferError(f"this worker has no pipeline {request.model!r}")
    pipeline = pipelines[request.model]
    if request.class_label is not None and not 0 <= request.class_label < len(pipeline.stack.class_names):
        raise UnknownOfferError(f"{request.model!r} has no class {request.class_label}")
    base = _plan(BASE, request)
    upsample = None
    if request.upsample:
        upsample = _plan(UPSAMPLE, request.upsample)
        if pipeline.spec.upsampling is None:
            raise UnknownOfferError(f"{request.model!r} has no upsampler")
    if request.guidance_scale and pipeline.stack.classifier is None:
        raise UnknownOfferError(f"{request.model!r} has no classifier to guide with")
    low, high = request.guidance_interval
    return [
        pipeline.image(
            job_id,
            index,
            request.seed,
            request.class_label,
            request.guidance_scale,
            base,
            upsample,
            guidance_interval=(low, high),
            wants_previews=request.previews,
        )
        for index in range(request.n)
    ]


def _plan(stage: str, asked: ResolvedRequest | ResolvedUpsample) -> StagePlan:
    return StagePlan(stage, asked.sampler, asked.steps, asked.eta, asked.time_grid, asked.thresholding)
