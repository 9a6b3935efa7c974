"""The sweep of a pipeline: metrics of its images at each setting of a grid (`adm evaluate sweep`)."""

from typing import Literal

from pydantic import Field

from jobs.contract.announced import Announced

MOST_CELLS = 1000
SUFFIX = ".sweep.json"  # of the file beside a stack's weights; the pipeline's name precedes it


class SweepFigure(Announced):
    """A metric and the ends of its interval, which are null if there are too few images."""

    value: float
    low: float | None = None
    high: float | None = None


class SweepCell(Announced):
    """One setting and the metrics of its images."""

    sampler: str
    steps: int
    guidance_scale: float
    eta: float = 0.0
    evaluations: int = Field(description="network evaluations per image")
    fid: SweepFigure
    precision: SweepFigure = Field(description="quality: the share of images that lie among the reference's images")
    recall: SweepFigure = Field(description="diversity: the share of the reference's images that lie among the images")


class Sweep(Announced):
    """Quality and diversity of a pipeline by guidance scale, steps and sampler, all else at its defaults."""

    object: Literal["sweep"] = "sweep"
    pipeline: str
    weights: tuple[str, ...] = Field(description="hashes of the base and of the classifier that made the images")
    images: int = Field(
        description="number of images per setting; all settings use the same noise and take the classes in turn, and "
        "only the base stage is sampled"
    )
    reference: str
    extractor: str = Field(description="the network whose features are compared")
    made_on: str = Field(description="date")
    cells: tuple[SweepCell, ...] = Field(min_length=1, max_length=MOST_CELLS)
