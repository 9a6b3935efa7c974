"""Types of the values in a stack.json; `models.stack_plan` checks its other fields."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from vocabulary.sampling import MAX_GUIDANCE_SCALE, Sampler, TimeGrid

MAX_DEFAULT_STEPS = 1000  # of a pipeline; a request may ask for as many as the schedule has
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]  # part of URLs, settings and keys in Redis


class Entry(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Sampling(Entry):
    steps: Annotated[int, Field(ge=1, le=MAX_DEFAULT_STEPS)]
    sampler: Sampler
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def refuse_eta_that_nothing_reads(self) -> Self:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta applies only to ddim, not to {self.sampler}")
        return self


class PipelineEntry(Entry):
    conditional: bool
    class_required: bool
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
    sampling: Sampling
    upsampling: Sampling | None
    time_grids: dict[Sampler, TimeGrid] = {}


class NetworkEntry(Entry):
    file: Annotated[str, Field(min_length=1, max_length=255)]  # no file system allows longer names


class Manifest(Entry):
    classes: list[Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$", max_length=128)]]
    base: NetworkEntry
    classifier: NetworkEntry | None = None
    upsampler: NetworkEntry | None = None
    pipelines: Annotated[dict[Name, PipelineEntry], Field(min_length=1)]

    @field_validator("classes")
    @classmethod
    def refuse_namesakes(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name")
        for name in names:
            if not name.isprintable():  # it is shown on terminals
                raise ValueError(f"the name {name!r} has characters that cannot be printed")
        return names


def check_values(manifest: dict[str, Any]) -> None:
    """Check a manifest's values. Raises: ValueError, one line with the first wrong field."""
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
