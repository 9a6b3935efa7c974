"""/livez, /readyz, /healthz and /metrics."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.probes import Health
from service.problems import documented, unavailable
from service.state import ServiceDep

router = APIRouter(tags=["health"])


class Ok(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/livez", summary="The process is up")
async def livez() -> Ok:
    return Ok()


@router.get("/readyz", response_model=Ok, summary="The service can serve calls", responses=documented(422, 503))
async def readyz(
    request: Request,
    service: ServiceDep,
    workers: Annotated[bool, Query(description="also require a live worker for the default pipeline")] = False,
) -> Any:
    lacks = await service.probes.what_is_lacking(workers)
    return Ok() if lacks is None else unavailable(request, lacks)


@router.get("/healthz", summary="Pipelines, workers and queued jobs", responses=documented(503))
async def healthz(service: ServiceDep) -> Health:
    return await service.probes.health()


METRICS_TEXT = {"description": "Prometheus text", "content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}


@router.get("/metrics", response_class=Response, summary="Metrics", responses={200: METRICS_TEXT})
async def get_metrics(service: ServiceDep) -> Response:
    return Response(await service.probes.metrics_text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
