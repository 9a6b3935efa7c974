"""/v1/workers/changes: operators have workers load and unload pipelines."""

from typing import Any

from fastapi import APIRouter, Request, Response

from jobs.contract.changes import ChangeRequest, PipelineChange
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.queue.changes import Changes
from jobs.views.fleet import Fleet
from service.authentication import CallerDep
from service.problems import documented, with_headers
from service.routes_jobs import refuse_other_than_json
from service.state import ServiceDep
from service.strict_query import StrictQueryRoute

router = APIRouter(prefix="/v1/workers/changes", tags=["models"], route_class=StrictQueryRoute)
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChangeRequest"}}},
    }
}


@router.post(
    "",
    status_code=202,
    summary="Have workers load or unload a pipeline, for operators",
    openapi_extra=BODY,
    responses={202: with_headers("Location"), **documented(404, 422, 503)},
)
async def create_change(service: ServiceDep, caller: CallerDep, request: Request, response: Response) -> PipelineChange:
    """A worker reads the change with its next heartbeat. From then on it claims no job. It finishes its jobs, and then
    loads or unloads the pipeline.

    Before it alters anything, it refuses a change that it cannot make: an unknown pipeline, one that does not fit in
    its memory, or the unloading of its only pipeline. A change lasts until the worker ends; at its start a worker loads
    the pipelines of ADM_PIPELINES.
    """
    refuse_other_than_json(request)
    body = ChangeRequest.parse(await request.body())

    def ask() -> PipelineChange:
        workers = asked_workers(service.queue.fleet.read(fresh=True), body)
        return Changes(service.redis).ask(body, workers, service.queue.ledger.now())

    change = await service.calls.run(ask, caller)
    request.state.audit_target = f"{body.action} {body.model}"
    response.headers["Location"] = f"{service.settings.root_path}/v1/workers/changes/{change.id}"
    return change


@router.get("/{change_id}", summary="The progress of workers with a change", responses=documented(404, 503))
async def get_change(change_id: str, service: ServiceDep, caller: CallerDep) -> PipelineChange:
    def read() -> PipelineChange | None:
        live = {each.name for each in service.queue.fleet.read(fresh=True).workers}
        return Changes(service.redis).read(change_id, live)

    change = await service.calls.run(read, caller)
    if change is None:
        raise RefusedError(ErrorKind.UNKNOWN_CHANGE, f"no change {change_id[:128]!r}; changes are kept for a day")
    return change


def asked_workers(fleet: Fleet, asked: ChangeRequest) -> list[str]:
    """The workers of a change. Raises: RefusedError if there are none."""
    live = [each.name for each in fleet.workers]
    if asked.worker is not None:
        if asked.worker not in live:
            there = ", ".join(live) or "none"
            raise RefusedError(ErrorKind.UNKNOWN_WORKER, f"no live worker {asked.worker!r}; there are: {there}")
        return [asked.worker]
    if not live:
        raise RefusedError(ErrorKind.UNKNOWN_WORKER, "no worker is live; start one")
    workers = [each.name for each in fleet.workers_of(asked.model)]
    if asked.action == "unload" and not workers:
        raise RefusedError(ErrorKind.UNKNOWN_MODEL, f"no live worker serves {asked.model!r}")
    return workers if asked.action == "unload" else live
