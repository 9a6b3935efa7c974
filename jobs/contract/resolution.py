"""Resolves a request: fills in a pipeline's defaults, and makes the checks that need the pipeline."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from jobs.contract.errors import MAX_ERRORS, FieldError, InvalidRequestError
from jobs.contract.kinds import COMMON, FIELDS
from jobs.contract.pipelines import PipelineInfo, UpsampleDefaults
from jobs.contract.request import MAX_IMAGES, MAX_INDEX, JobRequest, ResolvedRequest, ResolvedUpsample, UpsampleOptions
from vocabulary.classes import ClassNames, UnknownClassError
from vocabulary.sampling import GuidanceSchedule, TimeGrid, default_grid, most_encoding_steps

ENCODING_STEPS = 50  # in each direction; half as many leave a visible error
FRAMES = 8
STRENGTH = 0.5
WEIGHTS_ROUNDING = 1e-9  # of a sum of class weights


def resolve(request: JobRequest, pipeline: PipelineInfo, draw_seed: Callable[[], int]) -> ResolvedRequest:
    """Fill in every default of a request from a pipeline.

    Raises: InvalidRequestError with every wrong field.
    """
    return Resolution(request, pipeline).resolve(draw_seed)


class Resolution:
    """Resolves one request on one pipeline; collects all errors before it raises."""

    def __init__(self, request: JobRequest, pipeline: PipelineInfo) -> None:
        self.request, self.pipeline = request, pipeline
        self._classes = ClassNames({each.index: each.name for each in pipeline.classes})
        self.errors: list[FieldError] = []
        self.fields = FIELDS[request.kind]
        upsampler = next((each for each in pipeline.stages if each.name == "upsample"), None)
        if request.kind == "upsample" and not (upsampler and upsampler.class_conditional):
            self.fields -= {"class_label"}
        # whether images are encoded by DDIM, and decoded
        self.encodes = request.kind == "reconstruct" or (request.kind == "interpolate" and request.images is not None)

    def resolve(self, draw_seed: Callable[[], int]) -> ResolvedRequest:
        request = self.request
        self._check_kind()
        self._check_offered()
        class_label, class_weights = self._class_label(), self._class_weights()
        sampler, eta = self._base_sampler()
        time_grid = self._time_grid("", request.time_grid, sampler, self._steps(), self.pipeline.num_timesteps)
        self._check_offer("/thresholding", request.thresholding, self.pipeline.thresholdings)
        guidance_scale = self._guidance_scale()
        upsample = self._upsample()
        n = self._n()
        if self.errors:
            raise InvalidRequestError(self.errors)
        resolved = ResolvedRequest(
            kind=request.kind,
            model=self.pipeline.id,
            images=request.images or [],
            seeds=request.seeds,
            strength=self._strength(),
            class_label=class_label,
            class_weights=class_weights,
            guidance_scale=guidance_scale,
            guidance_interval=self._guidance_interval(),
            guidance_schedule=self._guidance_schedule(),
            steps=self._steps(),
            sampler=sampler,
            eta=eta,
            time_grid=time_grid,
            thresholding=request.thresholding,
            eps_scale=self._eps_scale(),
            n=n,
            first_index=request.first_index,
            seed=self._seed(draw_seed),
            upsample=upsample,
            previews=request.previews,
            priority=request.priority,
            expires_in=request.expires_in,
            user=request.user,
            metadata=request.metadata,
            webhook_url=request.webhook_url,
        )
        # kind upsample has no base stage, so the upsampler's steps and sampler are those of the whole job
        alone = request.kind == "upsample" and resolved.upsample
        return resolved.model_copy(update=alone.model_dump(exclude={"strength"})) if alone else resolved

    def _steps(self) -> int:
        if self.request.kind == "score":
            return 1  # one evaluation for each image
        encoding = min(ENCODING_STEPS, most_encoding_steps(self.pipeline.num_timesteps))
        return self.request.steps or (encoding if self.encodes else self.pipeline.defaults.steps)

    def _eps_scale(self) -> float:
        """The given scale, or the pipeline's; 1 if images are encoded, as other scales do not give standard noise."""
        if self.request.eps_scale is not None:
            return self.request.eps_scale
        return self.pipeline.defaults.eps_scale if "eps_scale" in self.fields and not self.encodes else 1.0

    def _strength(self) -> float | None:
        if self.request.kind != "variation":
            return None
        return STRENGTH if self.request.strength is None else abs(self.request.strength)

    def _guidance_interval(self) -> list[int]:
        if "guidance_interval" in self.request.model_fields_set:
            return self.request.guidance_interval
        return [0, self.pipeline.num_timesteps]

    def _seed(self, draw_seed: Callable[[], int]) -> int:
        if "seed" not in self.fields:
            return 0  # no noise is drawn; the PNG contains the seed, so a constant one gives equal requests equal bytes
        return draw_seed() if self.request.seed is None else self.request.seed

    def _wrong(self, pointer: str, detail: str) -> None:
        self.errors.append(FieldError(pointer, detail))

    def _check_kind(self) -> None:
        """Check that the pipeline offers the kind, that all fields belong to it, and that its inputs are given."""
        request, kind = self.request, self.request.kind
        if kind not in self.pipeline.kinds:
            self._wrong("/kind", f"{self.pipeline.id!r} offers {', '.join(self.pipeline.kinds)}")
        for name in sorted(request.model_fields_set - COMMON - self.fields):
            if getattr(request, name) != type(request).model_fields[name].default:
                self._wrong(f"/{name}", f"is not for kind {kind!r}")
        if kind == "interpolate":
            if (request.images is None) == (request.seeds is None):
                self._wrong("/images", "give either two images or two seeds to interpolate between")
            elif request.images is not None and len(request.images) != 2:
                self._wrong("/images", "must be two files")
        elif "images" in self.fields and request.images is None:
            self._wrong("/images", f"is required by kind {kind!r}")

    def _check_offered(self) -> None:
        request, limits = self.request, self.pipeline.limits
        if request.guidance_interval[0] > request.guidance_interval[1]:
            self._wrong("/guidance_interval", "the first timestep is above the second")
        # up to 1000 also for shorter schedules, because clients send it by default
        if request.guidance_interval[1] > (last := max(1000, self.pipeline.num_timesteps)):
            self._wrong("/guidance_interval/1", f"must be from 0 to {last} for {self.pipeline.id!r}")
        for name, value, bounds in (
            ("n", request.n, limits.n),
            ("steps", request.steps, limits.steps),
            ("guidance_scale", request.guidance_scale, limits.guidance_scale),
        ):
            if value is not None and not bounds.min <= value <= bounds.max:
                self._wrong(f"/{name}", f"must be from {bounds.min:g} to {bounds.max:g} for {self.pipeline.id!r}")
        if not self.pipeline.stages[0].classifier_hash:
            for name, wants in (
                ("kind", request.kind == "score"),
                ("class_weights", request.class_weights is not None),
                ("guidance_schedule", request.guidance_schedule == "entropy"),
            ):
                if wants:
                    self._wrong(f"/{name}", f"{self.pipeline.id!r} has no classifier")

    def _n(self) -> int:
        request = self.request
        if request.kind == "interpolate":
            n = request.n if "n" in request.model_fields_set else min(FRAMES, self.pipeline.limits.n.max)
            if n < 2:
                self._wrong("/n", "an interpolation has at least 2 frames")
            return n
        if (images := request.n * max(1, len(request.images or ()))) > MAX_IMAGES:
            self._wrong("/n", f"that is {images} images; a job has at most {MAX_IMAGES}")
        elif (last := request.first_index + images - 1) > MAX_INDEX:
            self._wrong("/first_index", f"the last image would have index {last}; the largest is {MAX_INDEX}")
        if request.kind == "variation" and request.first_index and len(request.images or ()) > 1:
            self._wrong("/first_index", "is for the variations of one image")
        return request.n

    def _class_label(self) -> int | None:
        request = self.request
        if "class_label" not in self.fields:
            return None
        if request.class_label is not None:
            return self._class_index(partial(self._classes.find, request.class_label), "/class_label")
        insists = self.pipeline.class_required and request.kind == "generate" and request.class_weights is None
        insists |= request.kind == "upsample"
        if insists and "class_label" not in request.model_fields_set:
            or_none = " (null asks for no class)" if self.pipeline.no_class_offered else ""
            self._wrong("/class_label", f"is required by {self.pipeline.id!r}{or_none}")
        elif not self.pipeline.no_class_offered:
            self._wrong("/class_label", f"null is not offered by {self.pipeline.id!r}")
        return None

    def _class_weights(self) -> dict[str, float] | None:
        """Weights that sum to 1, by class. Those that do already stay as they are, so that a PNG's make it again."""
        given = self.request.class_weights
        if given is None:
            return None
        weights: dict[int, float] = {}
        for name, weight in given.items():
            if len(self.errors) >= MAX_ERRORS:  # an answer has no more
                break
            pointer = "/class_weights/" + name.replace("~", "~0").replace("/", "~1")
            index = self._class_index(partial(self._classes.parse, name), pointer)
            if index in weights:
                self._wrong(pointer, f"class {index} is given twice, by name and by index")
            elif index is not None:
                weights[index] = weight
        total = sum(weights.values())
        if math.isclose(total, 1, rel_tol=WEIGHTS_ROUNDING):
            total = 1.0
        return {str(index): weights[index] / total for index in sorted(weights)}

    def _class_index(self, find: Callable[[], int], pointer: str) -> int | None:
        try:
            return find()
        except UnknownClassError as error:
            self._wrong(pointer, str(error))
            return None

    def _guidance_scale(self) -> float:
        request, given = self.request, self.request.guidance_scale
        if "guidance_scale" not in self.fields:
            return 0.0
        if request.class_label is not None or request.class_weights is not None:
            default = 0.0 if self.encodes else self.pipeline.defaults.guidance_scale
            return default if given is None else abs(given)  # abs: -0.0 becomes 0
        if given:
            self._wrong("/guidance_scale", "must be 0 without a class: there is nothing to guide towards")
        elif given is None and "class_label" not in request.model_fields_set and not self.errors:
            self._refuse_missing_class()
        return 0.0

    def _guidance_schedule(self) -> GuidanceSchedule:
        """The given schedule, the pipeline's for its default scale, or the paper's constant one for a given scale."""
        request = self.request
        if request.guidance_schedule is not None:
            return request.guidance_schedule
        by_default = "guidance_schedule" in self.fields and not self.encodes and request.guidance_scale is None
        return self.pipeline.defaults.guidance_schedule if by_default else "constant"

    def _refuse_missing_class(self) -> None:
        """Report a missing class if the pipeline's default guidance scale needs one."""
        if self.request.kind == "generate" and self.pipeline.defaults.guidance_scale > 0:
            self._wrong("/class_label", "is required unless guidance_scale is 0")

    def _base_sampler(self) -> tuple[str, float]:
        request, defaults = self.request, self.pipeline.defaults
        if not self.encodes:
            return self._sampler(
                "", request.sampler, request.eta, defaults.sampler, defaults.eta, self.pipeline.samplers
            )
        if request.sampler not in (None, "ddim"):
            self._wrong("/sampler", "must be ddim, because only ddim encodes images")
        most = most_encoding_steps(self.pipeline.num_timesteps)
        if request.steps is not None and not 2 <= request.steps <= most:
            self._wrong("/steps", f"must be from 2 to {most} if an image is encoded")
        if request.eta:
            self._wrong("/eta", "must be 0 if an image is encoded: with drawn noise, decoding would not restore it")
        if request.thresholding != "clip" and request.kind == "interpolate":
            self._wrong("/thresholding", "does not apply to images that are encoded")
        return "ddim", 0.0

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
            # a pipeline's default sampler comes with its eta; a given sampler gets its usual eta, 0
            eta = default_eta if sampler is None and chosen == "ddim" else 0.0
        if eta and chosen != "ddim":
            self._wrong(f"{at}/eta", f"applies only to ddim; {chosen} has no eta")
        return chosen, abs(eta)

    def _time_grid(self, at: str, given: TimeGrid | None, sampler: str, steps: int, num_timesteps: int) -> TimeGrid:
        """The given time grid, or the default, if the pipeline offers it.

        The default is "even" for an encoding, the pipeline's grid for this sampler of the base, or the sampler's own.
        """
        offered = self.pipeline.time_grids
        if given is None:
            default = default_grid(sampler, steps, num_timesteps)
            if not at:
                default = "even" if self.encodes else self.pipeline.defaults.time_grids.get(sampler, default)
            return default if default in offered else "official"
        self._check_offer(f"{at}/time_grid", given, offered)
        return given

    def _check_offer(self, pointer: str, chosen: str, offered: tuple[str, ...]) -> None:
        if chosen not in offered:
            self._wrong(pointer, f"{self.pipeline.id!r} does not offer {chosen!r}; it offers {', '.join(offered)}")

    def _upsample(self) -> ResolvedUpsample | Literal[False]:
        asked, defaults = self.request.upsample, self.pipeline.defaults.upsample
        if "upsample" not in self.fields:
            return False
        if self.request.kind == "upsample":
            if asked is False:
                self._wrong("/upsample", "must not be false, because kind 'upsample' runs only the upsampler")
            asked = asked or True
        if asked is False or (asked is None and defaults is None):
            return False
        if defaults is None:
            self._wrong("/upsample", f"{self.pipeline.id!r} has no upsampler")
            return False
        return self._upsample_options(asked if isinstance(asked, UpsampleOptions) else UpsampleOptions(), defaults)

    def _upsample_options(self, options: UpsampleOptions, defaults: UpsampleDefaults) -> ResolvedUpsample:
        stage = next(each for each in self.pipeline.stages if each.name == "upsample")
        sampler, eta = self._sampler(
            "/upsample", options.sampler, options.eta, defaults.sampler, defaults.eta, stage.samplers
        )
        if options.steps is not None and options.steps > stage.num_timesteps:
            self._wrong("/upsample/steps", f"must be from 1 to {stage.num_timesteps} for {self.pipeline.id!r}")
        steps = defaults.steps if options.steps is None else options.steps
        self._check_offer("/upsample/thresholding", options.thresholding, self.pipeline.thresholdings)
        return ResolvedUpsample(
            steps=steps,
            sampler=sampler,
            eta=eta,
            strength=defaults.strength if options.strength is None else abs(options.strength),
            time_grid=self._time_grid("/upsample", options.time_grid, sampler, steps, stage.num_timesteps),
            thresholding=options.thresholding,
        )
