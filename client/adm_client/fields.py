"""The fields of a job, as POST /v1/jobs describes them; what is left out is the pipeline's default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from PIL.Image import Image

Kind = Literal["generate", "upsample", "variation", "reconstruct", "interpolate", "score"]
TimeGrid = Literal["official", "even", "uniform", "logsnr", "karras"]
Thresholding = Literal["clip", "dynamic", "none"]
Picture = str | bytes | Path | Image  # a file's id, an encoded picture, where one lies, or pixels


class UpsampleFields(TypedDict, total=False):
    """How the upsampler samples."""

    steps: int | None
    sampler: str | None
    eta: float | None
    strength: float | None
    time_grid: TimeGrid | None
    thresholding: Thresholding


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
