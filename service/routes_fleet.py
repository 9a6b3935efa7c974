"""/v1/models and /v1/workers: announcements of workers; /v1/queue: the load; /v1/caller: the present caller."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from jobs.contract.caller import Role
from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import Sweep
from jobs.contract.workers import WorkerInfo
from jobs.views.fleet import Fleet
from jobs.views.load import QueueLoad
from service.authentication import CallerDep
from service.conditional_requests import answer_json
from service.problems import documented, with_headers
from service.state import ServiceDep
from service.strict_query import StrictQueryRoute

router = APIRouter(prefix="/v1", tags=["models"], route_class=StrictQueryRoute)
CONDITIONAL: dict[int | str, dict[str, Any]] = {
    200: with_headers("ETag", "Cache-Control"),
    304: {"description": "The caller's copy is current"} | with_headers("ETag", "Cache-Control"),
}


class ModelView(PipelineInfo):
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="always 0, because it is not known; OpenAI's clients expect the field")
    owned_by: str = "adm"
    workers: list[str]  # live workers that serve it; without one, its jobs wait until they expire


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


class CallerView(BaseModel):
    """The caller of this request."""

    object: Literal["caller"] = "caller"
    id: str | None = Field(description="null if callers need no key")
    name: str | None = Field(description="the key's")
    role: Role = Field(description="without keys everybody is an operator")


class WorkerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WorkerInfo]


@router.get(
    "/models",
    response_model=ModelList,
    summary="Pipelines, and the workers that serve them",
    responses={**CONDITIONAL, **documented(503)},
)
async def list_models(
    service: ServiceDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    fleet = await service.calls.run(service.queue.fleet.read, caller)
    listed = ModelList(data=[model_view(fleet, each) for each in fleet.pipelines.values()])
    return answer_json(listed.model_dump_json().encode(), if_none_match)


@router.get("/models/{name}", summary="One pipeline", responses=documented(404, 503))
async def get_model(name: str, service: ServiceDep, caller: CallerDep) -> ModelView:
    fleet = await service.calls.run(service.queue.fleet.read, caller)
    pipeline = fleet.pipelines.get(name)
    if pipeline is None:
        raise RefusedError(ErrorKind.UNKNOWN_MODEL, f"no model {name[:128]!r}")
    return model_view(fleet, pipeline)


@router.get(
    "/models/{name}/sweep",
    response_model=Sweep,
    summary="Quality and diversity of a pipeline's images by settings, if a sweep is stored beside its weights",
    responses={**CONDITIONAL, **documented(404, 503)},
)
async def get_sweep(
    name: str, service: ServiceDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    if name not in (await service.calls.run(service.queue.fleet.read, caller)).pipelines:
        raise RefusedError(ErrorKind.UNKNOWN_MODEL, f"no model {name[:128]!r}")
    sweep = await service.calls.run(partial(service.queue.fleet.sweep, name), caller)
    if sweep is None:
        raise RefusedError(ErrorKind.UNKNOWN_SWEEP, f"no sweep is stored with {name!r}; adm evaluate keep stores one")
    return answer_json(sweep.model_dump_json().encode(), if_none_match)


@router.get("/workers", summary="Live workers", responses=documented(503))
async def list_workers(service: ServiceDep, caller: CallerDep) -> WorkerList:
    return WorkerList(data=list((await service.calls.run(service.queue.fleet.read, caller)).workers))


@router.get("/queue", summary="The queue by pipeline and caller, for operators", responses=documented(503))
async def get_queue(service: ServiceDep, caller: CallerDep) -> QueueLoad:
    callers = (await service.keyring.read()).records
    return await service.long_calls.run(lambda: service.queue.loads.read(callers, service.queue.ledger.now()), caller)


@router.get("/caller", summary="The caller of this request, and its role", responses=documented(503))
async def get_caller_view(service: ServiceDep, caller: CallerDep) -> CallerView:
    name = (await service.keyring.read()).name_of(caller)
    return CallerView(id=caller.id or None, name=name, role=caller.role)


def model_view(fleet: Fleet, pipeline: PipelineInfo) -> ModelView:
    return ModelView(**dict(pipeline), workers=[each.name for each in fleet.workers_of(pipeline.id)])
