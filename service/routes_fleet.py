"""/v1/models and /v1/workers: what workers have announced."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from jobs.errors import ErrorKind, RefusedError
from jobs.fleet import Fleet
from jobs.pipelines import PipelineInfo
from jobs.workers import WorkerInfo
from service.problems import documented
from service.state import ServiceDep

router = APIRouter(prefix="/v1", tags=["models"])


class ModelView(PipelineInfo):
    object: Literal["model"] = "model"
    workers: list[str]  # live ones that hold it; with none, its jobs wait until they expire


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


class WorkerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WorkerInfo]


@router.get("/models", summary="Pipelines, and which workers hold them", responses=documented(503))
def list_models(service: ServiceDep) -> ModelList:
    fleet = service.queue.fleet.read()
    return ModelList(data=[model_view(fleet, each) for each in fleet.pipelines.values()])


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
