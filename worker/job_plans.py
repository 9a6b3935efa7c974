"""Turns a job's request into requests to the engine: its images, and what each of them starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from engine.errors import UnknownOfferError
from engine.inversion import as_frames, between
from engine.pipeline import BASE, UPSAMPLE, Pipeline
from engine.trajectory import FromPicture, Guidance, ImageRequest, StagePlan, StagePlans
from jobs.contract.request import ResolvedRequest, ResolvedUpsample
from vocabulary.sampling import Direction

Pictures = Mapping[str, Tensor]
"""Pictures [3, H, W], uint8, by the file id of the upload, reduced and cropped to the size of the base stage."""

TOP_CLASSES = 10


@dataclass(frozen=True)
class JobPlan:
    """The images of a job.

    For an interpolation `images` are the two encodings, and `frames` enter the engine when both have ended.

    `pictures`, each [3, H, W], uint8, are only classified; they do not enter the engine.
    """

    images: Sequence[ImageRequest] = ()
    frames: Sequence[ImageRequest] = ()
    pictures: Sequence[Tensor] = field(default=())

    def frames_between(self, first: Tensor, last: Tensor) -> list[ImageRequest]:
        """The frames, each starting from its place between two latents."""
        return between(self.frames, first, last)


def plan_job(job_id: str, request: ResolvedRequest, pipelines: Mapping[str, Pipeline], pictures: Pictures) -> JobPlan:
    """The images that a job asks for; `pictures` has every upload that it starts from.

    Raises: UnknownOfferError for a pipeline, class or stage that this worker does not have.
    """
    pipeline = pipeline_of(request, pipelines)
    planner = Planner(job_id, request, pipeline, pictures)
    match request.kind:
        case "generate":
            return JobPlan([planner.image(index, base=planner.base()) for index in request.indices])
        case "upsample":
            return planner.upsample()
        case "variation":
            return planner.variation()
        case "reconstruct":
            return planner.reconstruct()
        case "interpolate":
            return planner.interpolate()
        case "score":
            return JobPlan(pictures=[start.pixels for start in planner.starts()])


def pipeline_of(request: ResolvedRequest, pipelines: Mapping[str, Pipeline]) -> Pipeline:
    """The pipeline that a job runs on. Raises: UnknownOfferError if this worker lacks a part of it."""
    if request.model not in pipelines:
        raise UnknownOfferError(f"this worker has no pipeline {request.model!r}")
    pipeline = pipelines[request.model]
    classes, stack = len(pipeline.stack.class_names), pipeline.stack
    for label in (request.class_label, *map(int, request.class_weights or ())):
        if label is not None and not 0 <= label < classes:
            raise UnknownOfferError(f"{request.model!r} has no class {label}")
    if request.upsample and pipeline.spec.upsampling is None:
        raise UnknownOfferError(f"{request.model!r} has no upsampler")
    if (request.guidance_scale or request.kind == "score") and stack.classifier is None:
        raise UnknownOfferError(f"{request.model!r} has no classifier")
    return pipeline


@dataclass(frozen=True)
class Planner:
    """Plans one request on one pipeline."""

    job_id: str
    request: ResolvedRequest
    pipeline: Pipeline
    pictures: Pictures

    def upsample(self) -> JobPlan:
        starts = zip(self.request.indices, self.starts(), strict=True)
        return JobPlan([self.image(index, base=None, start=start) for index, start in starts])

    def variation(self) -> JobPlan:
        request = self.request
        base = replace(self.base(), strength=1.0 if request.strength is None else request.strength)
        starts = [start for start in self.starts() for _ in range(request.n)]
        numbered = zip(request.indices, starts, strict=True)
        return JobPlan([self.image(index, base=base, start=start) for index, start in numbered])

    def reconstruct(self) -> JobPlan:
        encode, decode = self.there_and_back()
        starts = enumerate(self.starts())
        return JobPlan([self.image(index, encode=encode, base=decode, start=start) for index, start in starts])

    def interpolate(self) -> JobPlan:
        request = self.request
        if request.seeds is not None:
            first, last = (self.pipeline.starting_noise(seed) for seed in request.seeds)
            frames = as_frames([self.image(index, base=self.base()) for index in range(request.n)])
            return JobPlan(between(frames, first, last))
        encode, decode = self.there_and_back()
        ends = [
            replace(
                self.image(request.n + i, encode=encode, base=None, enlarge=False, start=start), wants_previews=False
            )
            for i, start in enumerate(self.starts())
        ]
        return JobPlan(ends, as_frames([self.image(index, base=decode) for index in range(request.n)]))

    def starts(self) -> list[FromPicture]:
        """The picture that each image starts from, at the size of the base stage's output and the upsampler's input."""
        squares = {each: FromPicture(self.pictures[each]) for each in set(self.request.images)}
        return [squares[each] for each in self.request.images]

    def base(self) -> StagePlan:
        return replace(_plan(BASE, self.request), eps_scale=self.request.eps_scale)

    def there_and_back(self) -> tuple[StagePlan, StagePlan]:
        """Plans to encode and decode, without thresholding, because decoding cannot restore what is clipped."""
        decode = replace(self.base(), thresholding="none")
        return replace(decode, direction=Direction.ENCODE), decode

    def image(
        self,
        index: int,
        *,
        encode: StagePlan | None = None,
        base: StagePlan | None,
        enlarge: bool = True,
        start: FromPicture | None = None,
    ) -> ImageRequest:
        """An image with the given plans, and with the upsampler's plan if the request has one."""
        request = self.request
        upsample = None
        if enlarge and request.upsample:
            upsample = replace(_plan(UPSAMPLE, request.upsample), strength=request.upsample.strength)
        low, high = request.guidance_interval
        weights = request.class_weights
        return self.pipeline.image(
            self.job_id,
            index,
            request.seed,
            Guidance(
                request.class_label,
                request.guidance_scale,
                interval=(low, high),
                class_weights=None if weights is None else {int(label): weight for label, weight in weights.items()},
                entropy_scaled=request.guidance_schedule == "entropy",
            ),
            StagePlans(base, upsample, encode=encode),
            start=start,
            wants_previews=request.previews,
            priority=request.priority,
        )


def _plan(stage: str, asked: ResolvedRequest | ResolvedUpsample) -> StagePlan:
    return StagePlan(stage, asked.sampler, asked.steps, asked.eta, asked.time_grid, asked.thresholding)


def top_classes(probabilities: Tensor, class_names: Sequence[str]) -> list[dict[str, object]]:
    """The most probable classes of one answer [K], at most TOP_CLASSES of them."""
    values, labels = probabilities.topk(min(TOP_CLASSES, len(class_names)))
    return [
        {"class_label": label, "class_name": class_names[label], "probability": round(value, 6)}
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]
