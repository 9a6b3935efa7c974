"""The body of POST /v1/jobs, and the same with every default filled in."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from jobs.errors import FieldError, InvalidRequestError
from jobs.pipelines import PipelineInfo, UpsampleDefaults
from jobs.samplers import Thresholding, TimeGrid

MAX_STEPS = 1000
MAX_IMAGES = 64
MAX_GUIDANCE_SCALE = 50.0
MAX_SEED = 2**63 - 1
DRAWN_SEED_BELOW = 2**53  # so that a JSON reader which holds numbers as doubles can send it back unharmed

Priority = Literal["low", "normal", "high"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Eta = Annotated[float, Field(ge=0, le=1)]
Timestep = Annotated[int, Field(ge=0, le=1000)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class Strict(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class UpsampleOptions(Strict):
    """How the upsampler samples; what is left out is the pipeline's default."""

    steps: Steps | None = None
    sampler: Name | None = None
    eta: Eta | None = None
    time_grid: TimeGrid = "official"
    thresholding: Thresholding = "clip"


class ResolvedUpsample(Strict):
    steps: Steps
    sampler: Name
    eta: Eta
    time_grid: TimeGrid = "official"
    thresholding: Thresholding = "clip"


class ResolvedRequest(Strict):
    """A request with every default filled in: all that determines its images, and how to treat it."""

    kind: Literal["generate"] = "generate"
    model: Name
    class_label: int | None
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
    guidance_interval: Annotated[list[Timestep], Field(min_length=2, max_length=2)]
    steps: Steps
    sampler: Name
    eta: Eta
    time_grid: TimeGrid = "official"  # jobs from before there was a choice have none in their payload
    thresholding: Thresholding = "clip"
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    upsample: ResolvedUpsample | Literal[False]
    previews: bool
    priority: Priority
    expires_in: int
    user: str | None
    metadata: dict[str, str] | None
    webhook_url: None = None


class JobRequest(Strict):
    """What to make. Only `class_label` has no default."""

    kind: Literal["generate"] = "generate"
    model: Name | None = Field(default=None, description="a pipeline of /v1/models; null: the service's default")
    class_label: int | Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        default=None, description="index or name; null: no class, where offered, and then guidance_scale must be 0"
    )
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)] | None = Field(
        default=None, description="multiplies the classifier's gradient; 0 is off; null: the pipeline's default"
    )
    guidance_interval: Annotated[list[Timestep], Field(min_length=2, max_length=2)] = Field(
        default=[0, 1000], description="guide only at original timesteps inside, ends included"
    )
    steps: Steps | None = Field(
        default=None,
        description="steps of the sampler, some of which take two network evaluations for one; null: the "
        "pipeline's default, 25",
    )
    sampler: Name | None = Field(default=None, description="one of the pipeline's; null: its default")
    eta: Eta | None = Field(default=None, description="DDIM only: 0 is deterministic; null: the pipeline's default")
    time_grid: TimeGrid = Field(
        default="official",
        description="the timesteps a run keeps: the published spacing; steps of one length in t, the last of them to "
        "the clean image; even in log-SNR; or in sigma^(1/7) (Karras et al. 2022)",
    )
    thresholding: Thresholding = Field(
        default="clip",
        description="how the predicted clean image is bounded: clipped before guidance, as published; dynamic: the "
        "guided prediction scaled down to its own 99.5 % quantile (Saharia et al. 2022); or not at all",
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = Field(default=1, description="number of images")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        default=None, description="image i draws its noise from (seed, i); null: drawn, and reported"
    )
    upsample: bool | UpsampleOptions | None = Field(
        default=None, description="true where there is an upsampler; false: the base stage's images"
    )
    previews: bool = Field(default=False, description="send predictions of the clean image as `preview` events")
    priority: Priority = "normal"
    expires_in: Annotated[int, Field(ge=1, le=30 * 86400)] = Field(
        default=86400, description="seconds until a job that has not started expires"
    )
    user: Annotated[str, StringConstraints(max_length=128)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    webhook_url: None = Field(default=None, description="not offered yet")

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a request from JSON.

        Raises: InvalidRequestError, one entry a wrong field; pointer "" for a body that is no JSON object.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequestError(field_errors(error)) from error

    def resolve(self, pipeline: PipelineInfo, draw_seed: Callable[[], int]) -> ResolvedRequest:
        """Fill in every default from a pipeline and check what only the pipeline knows.

        Raises: InvalidRequestError naming every wrong field.
        """
        return Resolution(self, pipeline).resolve(draw_seed)


class Resolution:
    """One request against one pipeline; gathers all errors before it raises."""

    def __init__(self, request: JobRequest, pipeline: PipelineInfo) -> None:
        self.request, self.pipeline = request, pipeline
        self.errors: list[FieldError] = []

    def resolve(self, draw_seed: Callable[[], int]) -> ResolvedRequest:
        request, defaults = self.request, self.pipeline.defaults
        self._check_offered()
        class_label = self._class_label()
        steps = defaults.steps if request.steps is None else request.steps
        sampler, eta = self._sampler(
            "", request.sampler, request.eta, defaults.sampler, defaults.eta, self.pipeline.samplers
        )
        self._grid_and_bound("", request.time_grid, request.thresholding)
        guidance_scale = self._guidance_scale()
        upsample = self._upsample()
        if self.errors:
            raise InvalidRequestError(self.errors)
        return ResolvedRequest(
            model=self.pipeline.id,
            class_label=class_label,
            guidance_scale=guidance_scale,
            guidance_interval=request.guidance_interval,
            steps=steps,
            sampler=sampler,
            eta=eta,
            time_grid=request.time_grid,
            thresholding=request.thresholding,
            n=request.n,
            seed=draw_seed() if request.seed is None else request.seed,
            upsample=upsample,
            previews=request.previews,
            priority=request.priority,
            expires_in=request.expires_in,
            user=request.user,
            metadata=request.metadata,
        )

    def _wrong(self, pointer: str, detail: str) -> None:
        self.errors.append(FieldError(pointer, detail))

    def _check_offered(self) -> None:
        request, limits = self.request, self.pipeline.limits
        if request.guidance_interval[0] > request.guidance_interval[1]:
            self._wrong("/guidance_interval", "the first timestep is above the second")
        for name, value, bounds in (
            ("n", request.n, limits.n),
            ("steps", request.steps, limits.steps),
            ("guidance_scale", request.guidance_scale, limits.guidance_scale),
        ):
            if value is not None and not bounds.min <= value <= bounds.max:
                self._wrong(f"/{name}", f"must be from {bounds.min:g} to {bounds.max:g} for {self.pipeline.id!r}")

    def _class_label(self) -> int | None:
        given, classes = self.request.class_label, self.pipeline.classes
        if given is None:
            if self.pipeline.class_required and "class_label" not in self.request.model_fields_set:
                self._wrong("/class_label", f"is required by {self.pipeline.id!r}")
            elif not self.pipeline.no_class_offered:
                self._wrong("/class_label", f"null is not offered by {self.pipeline.id!r}")
            return None
        if isinstance(given, str):
            index = next((each.index for each in classes if each.name == given), None)
            if index is None:
                close = get_close_matches(given.lower(), [each.name for each in classes], n=3)
                self._wrong(
                    "/class_label", f"unknown class {given!r}" + (f"; near: {', '.join(close)}" if close else "")
                )
            return index
        if all(each.index != given for each in classes):
            last = max((each.index for each in classes), default=None)
            self._wrong("/class_label", f"unknown class {given}" + ("" if last is None else f"; there are 0 to {last}"))
        return given

    def _guidance_scale(self) -> float:
        given = self.request.guidance_scale
        if self.request.class_label is not None:
            return self.pipeline.defaults.guidance_scale if given is None else abs(given)  # -0.0 is 0
        if given is None and "class_label" not in self.request.model_fields_set and not self.errors:
            # the pipeline does not insist on a class, but guides by default, and there is nothing to guide towards
            if self.pipeline.defaults.guidance_scale > 0:
                self._wrong("/class_label", "is required unless guidance_scale is 0")
        elif given:
            self._wrong("/guidance_scale", "must be 0 without a class: there is nothing to guide towards")
        return 0.0

    def _sampler(
        self,
        at: str,
        sampler: str | None,
        eta: float | None,
        default: str,
        default_eta: float,
        offered: tuple[str, ...],
    ) -> tuple[str, float]:
        chosen = default if sampler is None else sampler
        if chosen not in offered:
            self._wrong(f"{at}/sampler", f"unknown sampler {chosen!r}; there are: {', '.join(offered)}")
        if eta is None:
            eta = default_eta if chosen == "ddim" else 0.0
        if eta and chosen != "ddim":
            self._wrong(f"{at}/eta", f"is for ddim alone; {chosen} has none")
        return chosen, abs(eta)

    def _grid_and_bound(self, at: str, time_grid: str, thresholding: str) -> None:
        for name, chosen, offered in (
            ("time_grid", time_grid, self.pipeline.time_grids),
            ("thresholding", thresholding, self.pipeline.thresholdings),
        ):
            if chosen not in offered:
                self._wrong(f"{at}/{name}", f"{self.pipeline.id!r} does not offer {chosen!r}, but {', '.join(offered)}")

    def _upsample(self) -> ResolvedUpsample | Literal[False]:
        asked, defaults = self.request.upsample, self.pipeline.defaults.upsample
        if asked is False or (asked is None and defaults is None):
            return False
        if defaults is None:
            self._wrong("/upsample", f"{self.pipeline.id!r} has no upsampler")
            return False
        return self._upsample_options(asked if isinstance(asked, UpsampleOptions) else UpsampleOptions(), defaults)

    def _upsample_options(self, options: UpsampleOptions, defaults: UpsampleDefaults) -> ResolvedUpsample:
        offered = next(each.samplers for each in self.pipeline.stages if each.name == "upsample")
        sampler, eta = self._sampler("/upsample", options.sampler, options.eta, defaults.sampler, defaults.eta, offered)
        self._grid_and_bound("/upsample", options.time_grid, options.thresholding)
        return ResolvedUpsample(
            steps=defaults.steps if options.steps is None else options.steps,
            sampler=sampler,
            eta=eta,
            time_grid=options.time_grid,
            thresholding=options.thresholding,
        )


UNIONS = ("class_label", "upsample")  # pydantic names the branch of these in an error's location


def field_errors(error: ValidationError) -> list[FieldError]:
    """One entry a wrong field, in the order of the fields; unions give one entry, not one a branch."""
    found: dict[str, str] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        parts = [str(part) for part in each["loc"] if part != "[key]"]
        if len(parts) > 1 and parts[0] in UNIONS:
            del parts[1]
        pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)
        detail = "unknown field" if each["type"] == "extra_forbidden" else each["msg"][:1].lower() + each["msg"][1:]
        found[pointer] = f"{found[pointer]}, or: {detail}" if pointer in found else detail
    inner = {pointer.rpartition("/")[0] for pointer in found} - {""}  # an object was meant: what is wrong lies within
    return [FieldError(pointer, detail) for pointer, detail in found.items() if pointer not in inner]
