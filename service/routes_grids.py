"""/v1/grids: requests whose fields vary along one or two axes, their jobs, and the labelled sheets of their images."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Request, Response

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.grids import Grid, GridRequest
from jobs.contract.job import Job
from jobs.queue.job_queue import Asked, unknown_grid
from jobs.queue.submitting import ItemsSubmission
from pictures.thumbnails import Form
from service.accept_header import preferred_format
from service.authentication import CallerDep
from service.conditional_requests import answer_picture
from service.grid_sheets import digest_of, read_sheet
from service.model_response import ModelResponse
from service.problems import documented, with_headers
from service.request_headers import KEY, MAX_WAIT_SECONDS, PREFER, idempotency_key, preferred_wait
from service.routes_images import IMAGE, SIZE
from service.routes_jobs import WAIT, all_at_end, count_submitted, refuse_other_than_json
from service.state import Service, ServiceDep
from service.strict_query import StrictQueryRoute
from tracing.propagation import current_traceparent

router = APIRouter(prefix="/v1/grids", tags=["grids"], route_class=StrictQueryRoute)

BODY: dict[str, Any] = {
    "parameters": [KEY, PREFER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/GridRequest"},
                "examples": {
                    "scales and steps": {
                        "value": {
                            "class_label": "torus",
                            "x": {"field": "guidance_scale", "values": [0, 1, 2, 4]},
                            "y": {"field": "steps", "values": [10, 25]},
                        }
                    }
                },
            }
        },
    },
}


@router.post(
    "",
    status_code=202,
    response_model=Grid,
    summary="Queue a job for each cell of a grid; all of them are queued, or none",
    openapi_extra=BODY,
    responses={
        202: with_headers("Location"),
        200: {"model": Grid, "description": "All jobs ended within the wait, or the call was replayed under its key"}
        | with_headers("Location", "Idempotency-Replayed", "Preference-Applied"),
        **documented(404, 413, 422, 429, 503),
    },
)
async def create_grid(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    refuse_other_than_json(request)
    wait, key = preferred_wait(request), idempotency_key(request)
    body = GridRequest.parse(await request.body())
    body.refuse_more_cells(service.settings.max_grid_cells)
    request_id = structlog.contextvars.get_contextvars()["request_id"]
    submission = ItemsSubmission(body, caller, key, request_id, current_traceparent())
    submitted = await service.long_calls.run(partial(service.queue.submitter.submit_items, submission), caller)
    for each in submitted:
        count_submitted(service, each)
    grid_id, replayed = submitted[0].job.id, any(each.replayed for each in submitted)
    headers = {"Location": f"{service.settings.root_path}/v1/grids/{grid_id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None:
        await wait_for_end(request, service, Asked(grid_id, caller), [each.job for each in submitted], wait)
    grid = await service.long_calls.run(partial(service.queue.grid, grid_id, caller), caller)
    waited = wait is not None and grid.sheet_url is not None
    if waited:
        headers["Preference-Applied"] = f"wait={wait}"
    return ModelResponse(grid, 200 if waited or replayed else 202, headers)


@router.get("/{grid_id}", response_model=Grid, summary="One grid with its jobs", responses=documented(404, 422, 503))
async def get_grid(
    request: Request,
    grid_id: str,
    service: ServiceDep,
    caller: CallerDep,
    wait: Annotated[int | None, WAIT] = None,
) -> Response:
    grid = await service.long_calls.run(partial(service.queue.grid, grid_id, caller), caller)
    if wait and grid.sheet_url is None:
        jobs = [each.job for each in grid.cells if each.job is not None]
        await wait_for_end(request, service, Asked(grid_id, caller), jobs, min(wait, MAX_WAIT_SECONDS))
        grid = await service.long_calls.run(partial(service.queue.grid, grid_id, caller), caller)
    return ModelResponse(grid)


@router.post(
    "/{grid_id}/cancel",
    response_model=Grid,
    summary="Cancel all jobs of a grid that have not ended",
    responses=documented(404, 503),
)
async def cancel_grid(grid_id: str, service: ServiceDep, caller: CallerDep) -> Response:
    return ModelResponse(await service.long_calls.run(partial(service.queue.cancel_grid, grid_id, caller), caller))


@router.delete(
    "/{grid_id}",
    status_code=204,
    summary="Remove a grid, all its jobs and their images",
    responses=documented(404, 503),
)
async def delete_grid(grid_id: str, service: ServiceDep, caller: CallerDep) -> None:
    await service.store_calls.run(lambda: service.queue.delete_grid(grid_id, caller), caller)


@router.get(
    "/{grid_id}/sheet",
    summary="All images of a grid on one labelled sheet, once every cell has ended",
    response_class=Response,
    responses={**IMAGE, **documented(404, 409, 422, 503)},
)
async def get_sheet(
    request: Request,
    grid_id: str,
    service: ServiceDep,
    caller: CallerDep,
    size: Annotated[int | None, SIZE] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A cell without an image shows the status of its job. The sheet may show images scaled; the jobs' PNGs are the
    images themselves."""
    grid = await service.long_calls.run(partial(service.queue.grid, grid_id, caller), caller)
    if grid.sheet_url is None:
        detail = f"{grid.ended} of {len(grid.cells)} cells of grid {grid_id} have ended; its sheet needs all of them"
        raise RefusedError(ErrorKind.IMAGE_NOT_READY, detail)
    form = Form(preferred_format(request.headers.getlist("accept")), size)
    # weak, because another version of the font or the encoder may give other bytes
    etag = f'W/"{digest_of(grid)}-{form.size_px or "full"}.{form.format}"'
    return await answer_picture(
        partial(read_sheet, service, grid, Asked(grid_id, caller), form),
        etag,
        f"image/{form.format}",
        grid.expires_at - time.time(),
        if_none_match,
        Vary="Accept",
    )


async def wait_for_end(request: Request, service: Service, asked: Asked, jobs: Sequence[Job], seconds: float) -> None:
    """Wait until a grid's jobs have ended, at most the given seconds.

    Raises: RefusedError if the caller's key was revoked meanwhile.
    """
    await all_at_end(request, service, asked.caller, jobs, seconds)
    if not await service.keyring.still_opens(asked.caller):
        raise unknown_grid(asked.job_id)
