"""Is it up, can it serve, how is it; and /metrics."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from redis.exceptions import RedisError

from jobs.server import look
from service import metrics
from service.problems import documented, unavailable
from service.state import Service, ServiceDep

router = APIRouter(tags=["health"])


class Ok(BaseModel):
    status: Literal["ok"] = "ok"


class PipelineHealth(BaseModel):
    id: str
    workers: list[str]
    queued: int


class Health(BaseModel):
    """`degraded`: a pipeline has no worker, so its jobs wait."""

    status: Literal["ok", "degraded"]
    redis: Literal["ok"] = "ok"
    pipelines: list[PipelineHealth]
    default_model: str
    workers: int


@router.get("/livez", summary="The process is up")
async def livez() -> Ok:
    return Ok()


@router.get("/readyz", response_model=Ok, summary="It can serve", responses=documented(422, 503))
async def readyz(
    request: Request,
    service: ServiceDep,
    workers: Annotated[bool, Query(description="ask too that a live worker holds the default pipeline")] = False,
) -> Any:
    lacks = await to_thread.run_sync(what_is_lacking, service, workers, limiter=service.probing)
    return Ok() if lacks is None else unavailable(request, lacks)


def what_is_lacking(service: Service, workers: bool) -> str | None:
    """Why the service cannot serve; None if it can. Raises: RedisError, whose handler answers 503."""
    if (fault := look(service.redis).fault) is not None:
        return fault
    default = service.settings.default_model
    if not service.queue.fleet.read(fresh=True).holders(default) and workers:
        return f"no worker holds the pipeline {default!r}"
    return None


@router.get("/healthz", response_model=Health, summary="Detail", responses=documented(503))
async def healthz(service: ServiceDep) -> Health:
    return await to_thread.run_sync(health, service, limiter=service.probing)


def health(service: Service) -> Health:
    fleet = service.queue.fleet.read(fresh=True)
    default = service.settings.default_model
    names = sorted({*fleet.pipelines, default})
    backlogs = service.queue.backlogs(names)
    pipelines = [
        PipelineHealth(
            id=name,
            workers=[each.name for each in fleet.holders(name)],
            queued=sum(backlogs.of(name).lengths.values()),
        )
        for name in names
    ]
    all_held = all(each.workers for each in pipelines)
    return Health(
        status="ok" if all_held else "degraded",
        pipelines=pipelines,
        default_model=default,
        workers=len(fleet.workers),
    )


METRICS_TEXT = {"description": "Prometheus text", "content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}


@router.get("/metrics", response_class=Response, summary="Metrics", responses={200: METRICS_TEXT})
async def get_metrics(service: ServiceDep) -> Response:
    try:
        text = await to_thread.run_sync(metrics.text, service.metrics, service.queue, limiter=service.probing)
    except RedisError:
        text = metrics.own_text(service.metrics)  # what is left to tell matters most just then
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
