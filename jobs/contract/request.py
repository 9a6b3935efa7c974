"""The body of POST /v1/jobs, and its resolved form, which `jobs.contract.resolution` makes."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from jobs.contract.json_bodies import JsonBody, Strict
from jobs.contract.kinds import Kind
from vocabulary.priorities import Priority
from vocabulary.sampling import MAX_GUIDANCE_SCALE, GuidanceSchedule, Thresholding, TimeGrid

MAX_STEPS = 100_000  # no schedule is longer; a pipeline's own limit is in its `limits`
MAX_IMAGES = 64
MAX_INPUTS = 16
MAX_SEED = 2**63 - 1
MAX_INDEX = 2**32 - 1  # largest index of an image; it is one 32-bit word of the noise's counter
DRAWN_SEED_BELOW = 2**53  # so that JSON readers that store numbers as doubles keep it exact

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Eta = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
EpsScale = Annotated[float, Field(ge=0.9, le=1.1)]
Strength = Annotated[float, Field(ge=0, le=1)]
FileId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
FirstIndex = Annotated[int, Field(ge=0, le=MAX_INDEX)]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ClassWeight = Annotated[float, Field(gt=0, le=1e6)]
Timestep = Annotated[int, Field(ge=0, le=MAX_STEPS)]
WebhookUrl = Annotated[
    str,
    StringConstraints(
        max_length=1024, pattern=r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?([/?][!-~]*)?$"
    ),
]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class UpsampleOptions(Strict):
    """The sampling of the upsampler; a field that is left out has the pipeline's default."""

    steps: Steps | None = None
    sampler: Name | None = None
    eta: Eta | None = None
    strength: Strength | None = Field(
        default=None,
        description="share of the steps that is taken: the last ones, from the enlarged image noised to that point; "
        "1: all steps, from pure noise, as published; null: the pipeline's default",
    )
    time_grid: TimeGrid | None = None
    thresholding: Thresholding = "clip"


class ResolvedUpsample(Strict):
    steps: Steps
    sampler: Name
    eta: Eta
    strength: Strength = 1.0
    time_grid: TimeGrid = "official"
    thresholding: Thresholding = "clip"


ClassIndex = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Text = Annotated[str, StringConstraints(max_length=65_536)]  # without a bound, pydantic accepts lone surrogates


class ResolvedRequest(Strict):
    """A request with every default filled in: all that determines its images, and how to treat it."""

    kind: Kind = "generate"
    model: Name
    # payloads of older versions lack the fields that have a default here
    images: list[FileId] = Field(default=[])
    seeds: list[Seed] | None = None
    strength: Strength | None = None
    class_label: int | None
    class_weights: dict[ClassIndex, float] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
    guidance_interval: Annotated[list[Timestep], Field(min_length=2, max_length=2)]
    guidance_schedule: GuidanceSchedule = "constant"
    steps: Steps
    sampler: Name
    eta: Eta
    time_grid: TimeGrid = "official"
    thresholding: Thresholding = "clip"
    eps_scale: EpsScale = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)]
    first_index: FirstIndex = 0
    seed: Seed
    upsample: ResolvedUpsample | Literal[False]
    previews: bool
    priority: Priority
    expires_in: int
    user: Text | None
    metadata: dict[Text, Text] | None
    webhook_url: Text | None = None

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        """Check the kind's inputs. Resolution has checked requests in detail; this check is for payloads from Redis."""
        if self.kind == "interpolate":
            complete = len(self.images) == (2 if self.seeds is None else 0)
        else:
            complete = bool(self.images) == (self.kind != "generate")
        if not complete or (self.kind == "upsample" and not self.upsample) or self.num_rows > MAX_IMAGES:
            raise ValueError(f"the inputs are not those of a job of kind {self.kind!r}")
        return self

    @property
    def num_images(self) -> int:
        """The number of images that the job makes."""
        match self.kind:
            case "upsample" | "reconstruct":
                return len(self.images)
            case "variation":
                return self.n * len(self.images)
            case "score":
                return 0
            case _:
                return self.n

    @property
    def indices(self) -> range:
        """The indices of its images, which are in their addresses and in the keys of their noise."""
        return range(self.first_index, self.first_index + self.num_images)

    @property
    def num_rows(self) -> int:
        """The number of the job's images that are in the engine at the same time."""
        return self.num_images or len(self.images)

    def source(self, index: int) -> str | None:
        """The file that an image was made from; None if there is none or more than one."""
        match self.kind:
            case "upsample" | "reconstruct" | "variation":
                return self.images[(index - self.first_index) // self.n]
            case _:
                return None


class JobRequest(JsonBody):
    """A request for a job. The description of each field names its kinds; other kinds must leave it out."""

    kind: Kind = Field(
        default="generate",
        description="generate: images from noise; upsample: enlarged `images`; variation: `images` with noise added up "
        "to `strength`, then removed; reconstruct: `images` encoded to noise by DDIM, then decoded; interpolate: "
        "frames between two images or seeds; score: the classifier's p(y|x), without an image. A pipeline lists its "
        "`kinds`",
    )
    model: Name | None = Field(default=None, description="a pipeline of /v1/models; null: the service's default")
    images: Annotated[list[FileId], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        default=None, description="ids of uploaded files; not for generate; interpolate takes two, or `seeds`"
    )
    seeds: Annotated[list[Seed], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="interpolate: the seeds of the noise at both ends"
    )
    strength: Strength | None = Field(
        default=None,
        description="variation: share of the steps taken, the last ones, from the picture noised to that point; "
        "null: 0.5",
    )
    class_label: int | ClassName | None = Field(
        default=None,
        description="index or name; null: no class, if offered; then guidance_scale must be 0 unless there are "
        "class_weights. Not for kind score; for upsample only if the upsampler is class_conditional, and then "
        "required. generate requires it if the pipeline has class_required",
    )
    class_weights: Annotated[dict[ClassName, ClassWeight], Field(min_length=1, max_length=32)] | None = Field(
        default=None,
        description="weights of classes, by name or index: guidance leads towards this distribution in place of "
        "class_label, along the gradient of the weighted sum of log p(y|x)",
    )
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)] | None = Field(
        default=None, description="multiplies the classifier's gradient; 0 is off; null: the pipeline's default"
    )
    guidance_interval: Annotated[list[Timestep], Field(min_length=2, max_length=2)] = Field(
        default=[0, 1000],
        description="guide only at original timesteps in this range, ends included; left out: at all timesteps",
    )
    guidance_schedule: GuidanceSchedule | None = Field(
        default=None,
        description="entropy: the scale is multiplied by log(number of classes) / (entropy of the classifier's "
        "prediction), at most 10, so that guidance does not fade as the prediction becomes confident "
        "(Zheng et al. 2022); null: the pipeline's with its default scale, otherwise constant",
    )
    steps: Steps | None = Field(
        default=None,
        description="steps of the sampler; heun takes two network evaluations per step; null: the "
        "pipeline's default, or 50 if images are encoded",
    )
    sampler: Name | None = Field(default=None, description="one of the pipeline's; null: its default")
    eta: Eta | None = Field(
        default=None,
        description="DDIM only: 0 is deterministic; null: the pipeline's with its default sampler, otherwise 0",
    )
    time_grid: TimeGrid | None = Field(
        default=None,
        description="the timesteps that are visited. official: the published spacing; even: N steps evenly from 0 to "
        "1/N of the schedule below its end, 1/100 for N above 100; uniform: steps of equal length in t, the last one "
        "to the clean image; logsnr: even in log-SNR; "
        "karras: even in sigma^(1/7) (Karras et al. 2022). null: even if images are encoded, karras for dpmpp_2m and "
        "heun, official for ddpm and ddim, except even for ddim with 38, 112 and 334 steps of 1000, whose published "
        "spacing begins at the last timestep",
    )
    thresholding: Thresholding = Field(
        default="clip",
        description="bound on the predicted clean image. clip: before guidance, as published; dynamic: the guided "
        "prediction is scaled down to its own 99.5 % quantile (Saharia et al. 2022); none: no bound",
    )
    eps_scale: EpsScale | None = Field(
        default=None,
        description="factor on the noise that the base predicts; it corrects a network that predicts too little noise, "
        "which leaves grain if the sampler draws none; null: the pipeline's, or 1 if images are encoded",
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = Field(
        default=1,
        description="generate: images; variation: images per picture; interpolate: frames, 2 to 64, "
        "8 if left out; other kinds: 1",
    )
    first_index: FirstIndex = Field(
        default=0,
        description="images first_index to first_index + n - 1 of the seed, with the bytes that they have in a larger "
        f"job, and none above {MAX_INDEX}; generate, upsample, and variation of one image",
    )
    seed: Seed | None = Field(
        default=None, description="image i draws its noise from (seed, i); null: drawn, and reported"
    )
    upsample: bool | UpsampleOptions | None = Field(
        default=None, description="null: true if the pipeline has an upsampler; false: the base stage's images"
    )
    previews: bool = Field(default=False, description="send predictions of the clean image as `preview` events")
    priority: Priority = "normal"
    expires_in: Annotated[int, Field(ge=1, le=30 * 86400)] = Field(
        default=86400, description="seconds until a job that has not started expires"
    )
    user: Annotated[str, StringConstraints(max_length=128)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    webhook_url: WebhookUrl | None = Field(
        default=None,
        description="URL to which the ended job is posted, as job.completed, job.failed, job.cancelled or "
        "job.expired, signed by Standard Webhooks; a public address, over http or https",
    )
