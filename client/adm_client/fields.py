"""The fields of a job, as in POST /v1/jobs; omitted fields get the pipeline's default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from PIL.Image import Image

Kind = Literal["generate", "upsample", "variation", "reconstruct", "interpolate", "score"]
TimeGrid = Literal["official", "even", "uniform", "logsnr", "karras"]
Thresholding = Literal["clip", "dynamic", "none"]
AxisField = Literal[
    "guidance_scale",
    "steps",
    "sampler",
    "class_label",
    "eta",
    "seed",
    "time_grid",
    "thresholding",
    "guidance_schedule",
    "eps_scale",
    "strength",
]
Axis = Mapping[AxisField, Sequence[int | float | str | None]]  # of a grid: one field and its values
Picture = str | bytes | Path | Image  # a file id, an encoded picture, its path, or a PIL image


class UpsampleFields(TypedDict, total=False):
    """Sampler settings of the upsampling stage."""

    steps: int | None
    sampler: str | None
    eta: float | None
    strength: float | None
    time_grid: TimeGrid | None
    thresholding: Thresholding


class JobFilter(TypedDict, total=False):
    """Filters of a list of jobs."""

    model: str | None
    class_label: int | str | None
    metadata: Mapping[str, str] | None


class JobFields(TypedDict, total=False):
    kind: Kind
    model: str | None
    images: Sequence[Picture] | None
    seeds: Sequence[int] | None
    strength: float | None
    class_label: int | str | None
    class_weights: Mapping[str, float] | None
    guidance_scale: float | None
    guidance_interval: Sequence[int]
    guidance_schedule: Literal["constant", "entropy"] | None
    steps: int | None
    sampler: str | None
    eta: float | None
    time_grid: TimeGrid | None
    thresholding: Thresholding
    eps_scale: float | None
    n: int
    first_index: int
    seed: int | None
    upsample: bool | UpsampleFields | None
    previews: bool
    priority: Literal["low", "normal", "high"]
    expires_in: int
    user: str | None
    metadata: Mapping[str, str] | None
    webhook_url: str | None
