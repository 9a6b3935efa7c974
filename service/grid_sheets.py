"""The labelled sheet of a grid: its labels and its bytes."""

import hashlib
import json

import structlog

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.grids import AxisValue, AxisView, Grid, GridCell
from jobs.contract.job import JobStatus
from jobs.queue.job_queue import Asked
from pictures.decoding import PictureError
from pictures.sheet import SheetAxis, SheetCell, drawn_sheet
from pictures.thumbnails import Form, encoded
from service.routes_openai import read_png
from service.state import Service
from vocabulary.counts import counted

log = structlog.get_logger("service.grids")

PATIENCE_SECONDS = 30.0  # longest wait for others' sheets
LAYOUT = 1  # version of the layout; raise it when the same cells are drawn differently


def digest_of(grid: Grid) -> str:
    """A digest of a sheet's contents: its labels, and the image or the status of each cell."""
    shown = [each.job and ([image.sha256 for image in each.job.images] or each.job.status) for each in grid.cells]
    text = json.dumps([LAYOUT, title_of(grid), *map(str, axes_of(grid)), shown])
    return hashlib.sha256(text.encode()).hexdigest()


async def read_sheet(service: Service, grid: Grid, target: Asked, form: Form) -> bytes:
    """The sheet in a form. Raises: RefusedError, also for a PNG that is damaged in the store."""
    (x, y), max_pixels = axes_of(grid), service.settings.max_upload_pixels
    try:
        async with service.sheets.turn(target.caller.id, PATIENCE_SECONDS, "too many sheets of grids are being drawn"):
            cells = [await read_cell(service, each, target) for each in grid.cells]

            def draw() -> bytes:
                return encoded(drawn_sheet(title_of(grid), x, y, cells, max_pixels), form)

            return await service.conversions.run(draw, target.caller)
    except PictureError as error:
        log.error("damaged_image", grid_id=grid.id, error=str(error))
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"an image of grid {grid.id} {error}") from error


async def read_cell(service: Service, cell: GridCell, target: Asked) -> SheetCell:
    """The content of a cell on the sheet."""
    if cell.job is None:
        return SheetCell(None, "removed")
    if cell.job.status is not JobStatus.COMPLETED or not cell.job.images:
        return SheetCell(None, cell.job.status)
    return SheetCell(await read_png(service, Asked(cell.job.id, target.caller), cell.job.images[0].index))


def axes_of(grid: Grid) -> tuple[SheetAxis, SheetAxis | None]:
    """The axes with their labels."""
    return labelled(grid, "x", grid.x), None if grid.y is None else labelled(grid, "y", grid.y)


def labelled(grid: Grid, name: str, axis: AxisView) -> SheetAxis:
    if axis.field != "class_label":
        return SheetAxis(axis.field, [label_of(each) for each in axis.values])
    classes = {getattr(each, name): class_of(each) for each in grid.cells}
    return SheetAxis(axis.field, [classes.get(each) or label_of(each) for each in axis.values])


def class_of(cell: GridCell) -> str | None:
    """The class name of a cell's image, if it has a class."""
    images = [] if cell.job is None else cell.job.images
    return images[0].class_name if images else None


def label_of(value: AxisValue) -> str:
    if value is None:
        return "no class"
    return f"{value:g}" if isinstance(value, float) else str(value)


def title_of(grid: Grid) -> str:
    """The sheet's title: the settings that all cells share."""
    request = next((each.job.request for each in grid.cells if each.job is not None), None)
    if request is None:
        return grid.id
    axes = {grid.x.field, "" if grid.y is None else grid.y.field}
    names = {class_of(each) for each in grid.cells} - {None}
    settings = {
        "class_label": names.pop() if len(names) == 1 else None,
        "guidance_scale": f"scale {request.guidance_scale:g}" if request.guidance_scale else None,
        "steps": counted(request.steps, "step"),
        "sampler": request.sampler,
        "seed": f"seed {request.seed}",
    }
    return ", ".join([request.model, *(text for field, text in settings.items() if text and field not in axes)])
