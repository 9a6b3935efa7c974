"""The body of POST /v1/grids, a request whose fields vary along one or two axes, and the view of a grid."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.job import Job, View
from jobs.contract.json_bodies import Strict, field_errors
from jobs.contract.request import JobRequest
from vocabulary.counts import counted

MOST_VALUES = 64  # of an axis
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
AxisValue = int | float | str | None
KINDS_OF_ONE_IMAGE = ("generate", "upsample", "variation", "reconstruct")


class GridAxis(Strict):
    """The values that a field takes along one side of a grid."""

    field: AxisField
    values: Annotated[list[AxisValue], Field(min_length=1, max_length=MOST_VALUES)] = Field(
        description="values of the field, as in a request for a job; each value once; only class_label may be null, "
        "for no class"
    )


class GridRequest(JobRequest):
    """A request for one job per pair of values.

    All other fields are the same for every job, including the seed. The field of an axis must be left out elsewhere.
    """

    x: GridAxis = Field(description="from left to right")
    y: GridAxis | None = Field(default=None, description="from top to bottom; null: the grid is one row")

    @property
    def axes(self) -> dict[str, GridAxis]:
        return {"x": self.x} if self.y is None else {"x": self.x, "y": self.y}

    @property
    def num_cells(self) -> int:
        return count_cells(self.x, self.y)

    @cached_property
    def requests(self) -> list[JobRequest]:
        """The request of each cell, row by row. Raises: InvalidRequestError for fields that a grid cannot have."""
        if wrong := [*self._wrong_axes(), *self._several_images()]:
            raise InvalidRequestError(wrong)
        common = {name: getattr(self, name) for name in self.model_fields_set - {"x", "y"}}
        return [JobRequest.model_validate(common | self._values_at(place)) for place in range(self.num_cells)]

    def locate(self, place: int, error: InvalidRequestError) -> list[FieldError]:
        """The errors of one cell, with pointers into the grid's body.

        If the wrong field is the field of an axis, the pointer names the cell's value on that axis.
        """
        return [self._located(place, each) for each in error.errors]

    def refuse_more_cells(self, most: int) -> None:
        """Refuse a grid of more than `most` cells. Raises: InvalidRequestError."""
        if self.num_cells > most:
            detail = f"the grid has {counted(self.num_cells, 'cell')}; the limit is {most} (ADM_MAX_GRID_CELLS)"
            raise InvalidRequestError([FieldError("/x/values", detail)])

    def _position(self, name: str, place: int) -> int:
        """The position of a cell's value on an axis."""
        return place % len(self.x.values) if name == "x" else place // len(self.x.values)

    def _values_at(self, place: int) -> dict[str, AxisValue]:
        return {axis.field: axis.values[self._position(name, place)] for name, axis in self.axes.items()}

    def _located(self, place: int, error: FieldError) -> FieldError:
        for name, axis in self.axes.items():
            if error.pointer == f"/{axis.field}":
                position = self._position(name, place)
                return axis_error(name, axis, position, error.detail)
        return error

    def _wrong_axes(self) -> list[FieldError]:
        wrong = []
        if self.y is not None and self.y.field == self.x.field:
            wrong.append(FieldError("/y/field", f"{self.y.field} is already the field of axis x"))
        for name, axis in self.axes.items():
            if axis.field in self.model_fields_set:
                wrong.append(FieldError(f"/{axis.field}", f"is already the field of axis {name}; remove it here"))
            for position, value in enumerate(axis.values):
                if value in axis.values[:position]:
                    wrong.append(axis_error(name, axis, position, "is given twice"))
                elif value is None and axis.field != "class_label":
                    wrong.append(axis_error(name, axis, position, "must not be null"))
                else:
                    try:
                        JobRequest.model_validate({axis.field: value})
                    except ValidationError as error:
                        wrong += [axis_error(name, axis, position, each.detail) for each in field_errors(error)[:1]]
        return wrong

    def _several_images(self) -> list[FieldError]:
        wrong = []
        if self.kind not in KINDS_OF_ONE_IMAGE:
            wrong.append(FieldError("/kind", f"a cell of a grid is one image; use {', '.join(KINDS_OF_ONE_IMAGE)}"))
        if self.n != 1:
            wrong.append(FieldError("/n", "a cell of a grid is one image; leave n out"))
        if len(self.images or ()) > 1:
            wrong.append(FieldError("/images", "a cell of a grid is made from one picture"))
        return wrong


def axis_error(name: str, axis: GridAxis, position: int, detail: str) -> FieldError:
    """An error of one value of an axis."""
    return FieldError(f"/{name}/values/{position}", f"{axis.field} {json.dumps(axis.values[position])}: {detail}")


class AxisView(View):
    """One side of a grid."""

    field: str
    values: list[AxisValue]


class GridAxes(View):
    """The axes of a grid, as they are stored with its first job.

    A newer version may have written axes of fields that this version does not know.
    """

    x: AxisView
    y: AxisView | None = None

    @property
    def num_cells(self) -> int:
        return count_cells(self.x, self.y)


def count_cells(x: GridAxis | AxisView, y: GridAxis | AxisView | None) -> int:
    return len(x.values) * (1 if y is None else len(y.values))


class GridCell(View):
    """One cell and its job."""

    x: AxisValue
    y: AxisValue = Field(description="null, too, if the grid has no axis y")
    job: Job | None = Field(description="null: it was removed")


class Grid(View):
    """The jobs of one call, which differ only in the fields of the axes."""

    id: str = Field(description="the id of its first job; the grid exists as long as that job")
    object: Literal["grid"] = "grid"
    created_at: float
    expires_at: float = Field(description="the earliest time at which one of its jobs is removed; may still change")
    x: AxisView
    y: AxisView | None
    cells: list[GridCell] = Field(description="row by row: for each value of y, all of x")
    completed: int = Field(description="cells whose image is stored")
    ended: int = Field(description="cells that will not change any more, whether they have an image or not")
    sheet_url: str | None = Field(description="all images in one labelled picture; null until every cell has ended")

    @classmethod
    def of(cls, grid_id: str, axes: GridAxes, jobs: Sequence[Job | None], root_path: str) -> Self:
        """Make the view of a grid from its jobs, row by row; None for a removed job, but the first job must exist."""
        rows = [None] if axes.y is None else axes.y.values
        values = [(x, y) for y in rows for x in axes.x.values]
        kept = [each for each in jobs if each is not None]
        ended = len(jobs) - sum(not each.status.is_final for each in kept)
        return cls(
            id=grid_id,
            created_at=kept[0].created_at,
            expires_at=min(each.expires_at for each in kept),
            x=axes.x,
            y=axes.y,
            cells=[GridCell(x=x, y=y, job=job) for (x, y), job in zip(values, jobs, strict=True)],
            completed=sum(each.status == "completed" for each in kept),
            ended=ended,
            sheet_url=f"{root_path}/v1/grids/{grid_id}/sheet" if ended == len(jobs) else None,
        )
