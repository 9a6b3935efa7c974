"""The announcement of a worker's pipelines, which is all that the service knows about pipelines."""

from typing import Literal

from pydantic import Field

from jobs.contract.announced import Announced
from jobs.contract.samplers import SamplerNote
from vocabulary.sampling import GuidanceSchedule, TimeGrid


class ClassInfo(Announced):
    index: int
    name: str


class StageInfo(Announced):
    """One network of a pipeline, in the order in which an image passes through them."""

    name: Literal["base", "upsample"]
    image_size: int = Field(description="edge of its output, pixels")
    model_hash: str = Field(description="identifies the weights")
    classifier_hash: str | None = Field(default=None, description="weights of the classifier that guides it, if any")
    samplers: tuple[str, ...]
    class_conditional: bool = Field(default=False, description="its network is class-conditional")
    num_timesteps: int = Field(default=1000, description="length of its training schedule; the limit of its steps")


class IntRange(Announced):
    min: int
    max: int


class FloatRange(Announced):
    min: float
    max: float


class Limits(Announced):
    """Inclusive bounds of a request's numbers."""

    n: IntRange = IntRange(min=1, max=64)
    steps: IntRange = IntRange(min=1, max=1000)
    guidance_scale: FloatRange = FloatRange(min=0, max=50)


class UpsampleDefaults(Announced):
    steps: int
    sampler: str
    eta: float
    strength: float = 1.0


class Defaults(Announced):
    """The values of fields that a request leaves out."""

    sampler: str
    steps: int = 25
    eta: float = 0.0
    guidance_scale: float
    guidance_schedule: GuidanceSchedule = Field(
        default="constant", description="for the default scale; other scales use constant"
    )
    eps_scale: float = Field(default=1.0, description="factor on the noise that the base predicts")
    time_grids: dict[str, TimeGrid] = Field(
        default={}, description="of samplers whose time grid differs here from the sampler's own; not for an encoding"
    )
    upsample: UpsampleDefaults | None = Field(default=None, description="null: the pipeline has no upsampler")


class PipelineInfo(Announced):
    """One pipeline, as a worker announces it."""

    id: str
    classes: tuple[ClassInfo, ...]
    stages: tuple[StageInfo, ...]
    image_size: int = Field(description="edge of the final image, pixels")
    samplers: tuple[str, ...]
    sampler_notes: tuple[SamplerNote, ...] = Field(default=(), description="cost and use of each sampler")
    time_grids: tuple[str, ...] = Field(default=("official",), description="choices of the visited timesteps")
    thresholdings: tuple[str, ...] = Field(default=("clip",), description="choices of the bound on pred_x0")
    kinds: tuple[str, ...] = Field(default=("generate",), description="offered kinds of jobs")
    limits: Limits = Limits()
    defaults: Defaults
    class_required: bool = Field(description="class_label must be given; null only if no_class_offered")
    no_class_offered: bool = Field(description="class_label may be null; guidance_scale is then 0")
    num_timesteps: int = Field(default=1000, description="length of the training schedule")
    has_sweep: bool = Field(default=False, description="/v1/models/{name}/sweep has metrics of its settings")

    def class_name(self, index: int | None) -> str | None:
        """Name of a class; None for no class and for an index the pipeline does not have."""
        return next((each.name for each in self.classes if each.index == index), None)
