"""/v1/models and /v1/workers: what workers have announced."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Response
from pydantic import BaseModel, Field

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.workers import WorkerInfo
from jobs.views.fleet import Fleet
from service.conditional import answer_json
from service.problems import documented, with_headers
from service.state import ServiceDep

router = APIRouter(prefix="/v1", tags=["models"])


class ModelView(PipelineInfo):
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="for OpenAI's clients, as owned_by is; always 0: not known")
    owned_by: str = "adm"
    workers: list[str]  # live ones that hold it; with none, its jobs wait until they expire


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


class WorkerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WorkerInfo]


@router.get(
    "/models",
    response_model=ModelList,
    summary="Pipelines, and which workers hold them",
    responses={
        200: with_headers("ETag", "Cache-Control"),
        304: {"description": "As the caller holds it"} | with_headers("ETag", "Cache-Control"),
        **documented(503),
    },
)
def list_models(service: ServiceDep, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    fleet = service.queue.fleet.read()
    listed = ModelList(data=[model_view(fleet, each) for each in fleet.pipelines.values()])
    return answer_json(listed.model_dump_json().encode(), if_none_match)


@router.get("/models/{name}", summary="One pipeline", responses=documented(404, 503))
def get_model(name: str, service: ServiceDep) -> ModelView:
    fleet = service.queue.fleet.read()
    pipeline = fleet.pipelines.get(name)
    if pipeline is None:
        raise RefusedError(ErrorKind.UNKNOWN_MODEL, f"no model {name[:128]!r}")
    return model_view(fleet, pipeline)


@router.get("/workers", summary="Live workers", responses=documented(503))
def list_workers(service: ServiceDep) -> WorkerList:
    return WorkerList(data=list(service.queue.fleet.read().workers))


def model_view(fleet: Fleet, pipeline: PipelineInfo) -> ModelView:
    return ModelView(**dict(pipeline), workers=[each.name for each in fleet.holders(pipeline.id)])
