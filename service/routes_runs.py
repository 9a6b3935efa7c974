"""/v1/runs: training runs, read from the folder ADM_RUNS, if it is set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel

from jobs.contract.errors import ErrorKind, RefusedError
from runfolder.folder import read_regular
from runfolder.summary import RunSummary, find_runs
from service.problems import documented
from service.state import ServiceDep
from service.strict_query import StrictQueryRoute

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictQueryRoute)

MOST_STATS_BYTES = 4 << 20  # bytes read from the end of stats.jsonl: about 5,000 lines
MOST_PREVIEW_BYTES = 16 << 20
READER = CapacityLimiter(1)
T = TypeVar("T")
SHOWN_LINES = 1000  # of a run's figures: more than a plot has pixels
SEPARATOR = "~"  # stands for "/" in the id of a run
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture"}}


class RunRow(BaseModel):
    """A run in the list."""

    object: Literal["run"] = "run"
    id: str
    kind: str
    step: int
    steps: int
    started_at: float
    figures: dict[str, float]


class RunList(BaseModel):
    object: Literal["list"] = "list"
    data: list[RunRow]


class RunView(RunRow):
    """A run in full: its configuration, the records of its starts, figures by step, names of its previews."""

    config: dict[str, Any]
    info: dict[str, Any]
    lines: list[dict[str, float]]
    previews: list[str]


@router.get("", summary="Training runs of the folder ADM_RUNS, newest first", responses=documented(404, 503))
async def list_runs(service: ServiceDep) -> RunList:
    runs = await read(lambda: runs_of(service.settings.runs))
    rows = [RunRow(**row_of(run_id, run)) for run_id, run in runs.items()]
    return RunList(data=sorted(rows, key=lambda each: -each.started_at))


@router.get("/{run_id}", summary="One run with its figures by step", responses=documented(404, 503))
async def get_run(run_id: str, service: ServiceDep) -> RunView:
    run = await read(lambda: found(service.settings.runs, run_id))
    stride = -(-len(run.lines) // SHOWN_LINES) or 1
    lines = run.lines[::-1][::stride][::-1]  # the stride is counted from the newest line, which is always shown
    previews = [each.name for each in run.previews]
    return RunView(**row_of(run_id, run), config=run.config, info=run.info, lines=lines, previews=previews)


@router.get(
    "/{run_id}/previews/{name}",
    summary="A preview of a run: a picture of samples",
    response_class=Response,
    responses={**PNG, **documented(404, 503)},
)
async def get_preview(run_id: str, name: str, service: ServiceDep) -> Response:
    return Response(await read(lambda: preview(service.settings.runs, run_id, name)), media_type="image/png")


def preview(folder: Path | None, run_id: str, name: str) -> bytes:
    """Read a preview. Raises: RefusedError if it does not exist or is larger than any that a run writes."""
    for path in found(folder, run_id).previews:
        if path.name == name and path.stat().st_size <= MOST_PREVIEW_BYTES:
            return read_regular(path)
    raise RefusedError(ErrorKind.UNKNOWN_RUN, f"run {run_id[:128]!r} has no preview {name[:128]!r}")


async def read(call: Callable[[], T]) -> T:
    """Read files in a separate thread, because folders may be large or on a slow disk, and must not delay jobs."""
    return await to_thread.run_sync(call, limiter=READER)


def runs_of(folder: Path | None) -> Mapping[str, RunSummary]:
    """All runs below the folder by id. Raises: RefusedError if no folder is set."""
    if folder is None:
        raise RefusedError(
            ErrorKind.UNKNOWN_RUN, "no folder of training runs is set: set ADM_RUNS to one, such as runs"
        )
    return {
        str(run.folder.relative_to(folder)).replace("/", SEPARATOR): run for run in find_runs(folder, MOST_STATS_BYTES)
    }


def found(folder: Path | None, run_id: str) -> RunSummary:
    """Find a run among those below the folder, so that no other path is read. Raises: RefusedError."""
    run = runs_of(folder).get(run_id)
    if run is None:
        raise RefusedError(ErrorKind.UNKNOWN_RUN, f"no run {run_id[:128]!r}")
    return run


def row_of(run_id: str, run: RunSummary) -> dict[str, Any]:
    return {
        "id": run_id,
        "kind": run.info["kind"],
        "step": run.step,
        "steps": run.steps,
        "started_at": run.info["starts"][-1]["time"],
        "figures": run.last,
    }
