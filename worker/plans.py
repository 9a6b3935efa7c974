"""A job's request as the engine knows it: which images it takes, and what each of them starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from diffusion.latents import way
from diffusion.solvers import ENCODE
from engine.pipeline import BASE, UPSAMPLE, Pipeline
from engine.sampling import UnknownOfferError
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan
from jobs.contract.request import ResolvedRequest, ResolvedUpsample

Pictures = Mapping[str, Tensor]
"""An uploaded file's id to its picture [3, H, W], uint8, reduced and cropped to what the base stage makes."""

TOP_CLASSES = 10


@dataclass(frozen=True)
class JobPlan:
    """What enters the engine: images at once, frames when the two encodings, which images are then, have ended.

    pictures [N, 3, H, W], uint8, are to be classified; nothing enters the engine for them.
    """

    images: Sequence[ImageRequest] = ()
    frames: Sequence[ImageRequest] = ()
    pictures: Sequence[Tensor] = field(default=())

    def frames_between(self, first: Tensor, last: Tensor) -> list[ImageRequest]:
        """The frames, each from its place on the way between two latents."""
        return between(self.frames, first, last)


def plan_job(job_id: str, request: ResolvedRequest, pipelines: Mapping[str, Pipeline], pictures: Pictures) -> JobPlan:
    """The images that a job asks for; pictures has all that it starts from.

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
    """The pipeline that a job runs on. Raises: UnknownOfferError where it asks what this worker does not have."""
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
    """One request on one pipeline."""

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
            return JobPlan(between([self.image(index, base=self.base()) for index in range(request.n)], first, last))
        encode, decode = self.there_and_back()
        ends = [
            replace(
                self.image(request.n + i, encode=encode, base=None, enlarge=False, start=start), wants_previews=False
            )
            for i, start in enumerate(self.starts())
        ]
        return JobPlan(ends, [self.image(index, base=decode) for index in range(request.n)])

    def starts(self) -> list[FromPicture]:
        """What each image starts from; what the base stage makes is what an upsampler takes."""
        squares = {each: FromPicture(self.pictures[each]) for each in set(self.request.images)}
        return [squares[each] for each in self.request.images]

    def base(self) -> StagePlan:
        return replace(_plan(BASE, self.request), eps_scale=self.request.eps_scale)

    def there_and_back(self) -> tuple[StagePlan, StagePlan]:
        """Nothing is bounded either way: what a bound takes does not come back."""
        back = replace(self.base(), thresholding="none")
        return replace(back, sampler=ENCODE), back

    def image(
        self,
        index: int,
        *,
        encode: StagePlan | None = None,
        base: StagePlan | None,
        enlarge: bool = True,
        start: FromPicture | FromLatent | None = None,
    ) -> ImageRequest:
        """An image that takes the given plans, and the upsampler's where the request has one."""
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
            request.class_label,
            request.guidance_scale,
            base,
            upsample,
            encode=encode,
            start=start,
            guidance_interval=(low, high),
            class_weights=None if weights is None else {int(label): weight for label, weight in weights.items()},
            entropy_scaled=request.guidance_schedule == "entropy",
            wants_previews=request.previews,
            priority=request.priority,
        )


def between(frames: Sequence[ImageRequest], first: Tensor, last: Tensor) -> list[ImageRequest]:
    """Frames that start evenly along the great circle from one latent to another, both ends included.

    All draw the same noise, so that they differ by their latents alone, at any eta and in the upsampler.
    """
    latents = way(first, last, len(frames))
    return [
        replace(each, start=FromLatent(latent), noise_index=0) for each, latent in zip(frames, latents, strict=True)
    ]


def _plan(stage: str, asked: ResolvedRequest | ResolvedUpsample) -> StagePlan:
    return StagePlan(stage, asked.sampler, asked.steps, asked.eta, asked.time_grid, asked.thresholding)


def top_classes(probabilities: Tensor, class_names: Sequence[str]) -> list[dict[str, object]]:
    """The likeliest classes of one answer [K], TOP_CLASSES at most."""
    values, labels = probabilities.topk(min(TOP_CLASSES, len(class_names)))
    return [
        {"class_label": label, "class_name": class_names[label], "probability": round(value, 6)}
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]
