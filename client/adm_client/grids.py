"""Grids of images: jobs of one call that differ in one or two fields."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from adm_client import calls
from adm_client.errors import JobFailedError
from adm_client.models import GridCell, GridState, ImageInfo, JobState
from adm_client.pictures import checked, opened

if TYPE_CHECKING:
    from adm_client.asynchronous import AsyncClient
    from adm_client.blocking import Client


class Grid:
    """A grid at the service; `state` is its last known state."""

    def __init__(self, client: "Client", state: GridState) -> None:
        self._client, self.state = client, state

    def __repr__(self) -> str:
        return described(self.state)

    @property
    def id(self) -> str:
        return self.state.id

    def refresh(self, wait_seconds: int = 0) -> "Grid":
        """Read its state; with wait_seconds, the service answers when all cells have ended or after that time."""
        self.state = self._client.send(calls.grid(self.id, wait_seconds))
        return self

    def wait(self, timeout: float | None = None) -> "Grid":
        """Return when every cell has ended, in any way. Raises: TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.state.is_final:
            left = calls.MAX_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{self.state.ended} of {len(self.state.cells)} cells have ended after {timeout:g} s"
                )
            self.refresh(max(1, min(calls.MAX_WAIT_SECONDS, int(left))))
        return self

    def images(self) -> list[list[Image.Image]]:
        """The images, a list for each row. Raises: JobFailedError for a cell without one; DamagedError."""
        return in_rows(self.state, [opened(self.png(*place)) for place in places(self.state)])

    def png(self, column: int, row: int = 0) -> bytes:
        """The bytes of one cell's image. Raises: JobFailedError for a cell without one; DamagedError."""
        job, image = image_of(cell_at(self.state, column, row))
        return checked(self._client.send(calls.image(job.id, image.index)), image)

    def sheet(self) -> Image.Image:
        """All images in one labelled picture, once every cell has ended."""
        return opened(self._client.send(calls.sheet(self.id)))

    def save(self, folder: str | Path) -> list[Path]:
        """Write the sheet as ID-sheet.png, and each existing image as ID-ROW-COLUMN.png."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sheet = folder / f"{self.id}-sheet.png"
        sheet.write_bytes(self._client.send(calls.sheet(self.id)))
        paths = [sheet]
        for column, row in places(self.state):
            if has_image(cell_at(self.state, column, row)):
                paths.append(folder / f"{self.id}-{row}-{column}.png")
                paths[-1].write_bytes(self.png(column, row))
        return paths

    def cancel(self) -> "Grid":
        """Cancel all of its jobs that have not ended."""
        self.state = self._client.send(calls.cancel_grid(self.id))
        return self

    def delete(self) -> None:
        """Remove it, all its jobs and their images."""
        self._client.send(calls.delete_grid(self.id))

    def _repr_png_(self) -> bytes | None:
        """The PNG that a notebook shows: the grid's sheet, once every cell has ended."""
        return self._client.send(calls.sheet(self.id)) if self.state.is_final else None


class AsyncGrid:
    """A grid at the service; `state` is its last known state. `Grid` documents the calls."""

    def __init__(self, client: "AsyncClient", state: GridState) -> None:
        self._client, self.state = client, state

    def __repr__(self) -> str:
        return described(self.state)

    @property
    def id(self) -> str:
        return self.state.id

    async def refresh(self, wait_seconds: int = 0) -> "AsyncGrid":
        """Read its state; with wait_seconds, the service answers when all cells have ended or after that time."""
        self.state = await self._client.send(calls.grid(self.id, wait_seconds))
        return self

    async def wait(self) -> "AsyncGrid":
        """Return when every cell has ended, in any way; `asyncio.timeout` can limit the wait."""
        while not self.state.is_final:
            await self.refresh(calls.MAX_WAIT_SECONDS)
        return self

    async def images(self) -> list[list[Image.Image]]:
        """The images, a list for each row. Raises: JobFailedError for a cell without one; DamagedError."""
        return in_rows(self.state, [opened(await self.png(*place)) for place in places(self.state)])

    async def png(self, column: int, row: int = 0) -> bytes:
        """The bytes of one cell's image. Raises: JobFailedError for a cell without one; DamagedError."""
        job, image = image_of(cell_at(self.state, column, row))
        return checked(await self._client.send(calls.image(job.id, image.index)), image)

    async def sheet(self) -> Image.Image:
        """All images in one labelled picture, once every cell has ended."""
        return opened(await self._client.send(calls.sheet(self.id)))

    async def cancel(self) -> "AsyncGrid":
        """Cancel all of its jobs that have not ended."""
        self.state = await self._client.send(calls.cancel_grid(self.id))
        return self

    async def delete(self) -> None:
        """Remove it, all its jobs and their images."""
        await self._client.send(calls.delete_grid(self.id))


def described(state: GridState) -> str:
    return f"<Grid {state.id}: {state.ended} of {len(state.cells)} cells have ended>"


def places(state: GridState) -> list[tuple[int, int]]:
    """Column and row of each cell, row by row."""
    columns = len(state.x.values)
    return [(place % columns, place // columns) for place in range(len(state.cells))]


def cell_at(state: GridState, column: int, row: int) -> GridCell:
    """The cell at a place. Raises: IndexError for a place outside the grid."""
    columns = len(state.x.values)
    if not (0 <= column < columns and 0 <= row < len(state.cells) // columns):
        raise IndexError(f"the grid has {columns} columns and {len(state.cells) // columns} rows")
    return state.cells[row * columns + column]


def has_image(cell: GridCell) -> bool:
    return cell.job is not None and bool(cell.job.images)


def image_of(cell: GridCell) -> tuple[JobState, ImageInfo]:
    """The job and the image of a cell. Raises: JobFailedError if it has no image; LookupError if it was removed."""
    if cell.job is None:
        raise LookupError(f"the job of the cell at {cell.x}, {cell.y} was removed")
    if not cell.job.images:
        raise JobFailedError(cell.job)
    return cell.job, cell.job.images[0]


def in_rows(state: GridState, images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    columns = len(state.x.values)
    return [list(images[start : start + columns]) for start in range(0, len(images), columns)]
