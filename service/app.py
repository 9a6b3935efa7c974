"""The application: routes, errors, middleware and background tasks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from anyio import to_thread
from fastapi import FastAPI
from fastapi.routing import APIRoute

from jobs.settings import Settings
from service import (
    openapi,
    page,
    problems,
    routes_changes,
    routes_events,
    routes_files,
    routes_fleet,
    routes_grids,
    routes_health,
    routes_images,
    routes_jobs,
    routes_list,
    routes_openai,
    routes_requests,
    routes_runs,
    routes_zip,
)
from service.authentication import Authentication
from service.hosts import CrossOrigin
from service.metrics import Metrics
from service.middleware import Requests
from service.process_slot import ALONE, Slot
from service.request_spans import RequestSpans
from service.state import THREADS, connect
from tracing.recording import OFF, Tracing

START_FAILURE = "start_failure"  # in the application's state: the error that prevented its start
ROUTES = (  # in the order in which the OpenAPI document has them
    routes_jobs,
    routes_list,
    routes_images,
    routes_zip,
    routes_events,
    routes_grids,
    routes_openai,
    routes_files,
    routes_requests,
    routes_fleet,
    routes_changes,
    routes_runs,
    routes_health,
)
DESCRIPTION = "Images from ADM diffusion models, batched step by step."


def create_app(settings: Settings, slot: Slot = ALONE, tracing: Tracing = OFF) -> FastAPI:
    """Make the service's application; it connects to Redis when it starts, not here."""
    metrics = Metrics()
    app = FastAPI(
        title="ADM Serve",
        version=own_version(),
        description=DESCRIPTION,
        lifespan=lifespan_of(settings, metrics, slot, tracing),
        servers=[{"url": settings.root_path or "/"}],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `service.problems` does it
        generate_unique_id_function=operation_id,
        telemetry={"tracing": False},
    )
    for each in ROUTES:
        app.include_router(each.router)
    page.install(app)
    problems.install(app)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(
        Requests,
        metrics=metrics,
        settings=settings,
        spans=RequestSpans(tracing),
        body_limits=dict.fromkeys(
            (routes_files.PREFIX, routes_requests.FROM_IMAGE, *routes_openai.FORMS),
            settings.max_upload_bytes + routes_files.MAX_FRAMING_BYTES,
        ),
    )
    if settings.cors_origins:  # outermost, because refusals too need the headers that let a page read them
        app.add_middleware(CrossOrigin, settings=settings, exposed=tuple(openapi.HEADERS))
    openapi.install(app)
    return app


def lifespan_of(
    settings: Settings, metrics: Metrics, slot: Slot, tracing: Tracing
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Make the lifespan, which opens the connections and runs the background tasks of this process."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        try:
            service = connect(settings, metrics, slot)
        except Exception as error:
            setattr(app.state, START_FAILURE, error)
            raise
        app.state.service = service
        tasks = [asyncio.create_task(service.hub.run())]
        if slot.is_first:
            tasks += [asyncio.create_task(service.upkeep.run()), asyncio.create_task(service.webhooks.run())]
        if slot.count > 1:
            tasks.append(asyncio.create_task(service.process_metrics.run()))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await to_thread.run_sync(tracing.close)  # here, because the server's process ends by the signal that stopped it
        await service.hub.close()
        await service.async_redis.aclose()
        service.redis.close()

    return lifespan


def operation_id(route: APIRoute) -> str:
    """The function's name, which generated clients use for the operation."""
    return route.name


def own_version() -> str:
    try:
        return version("adm-serve")
    except PackageNotFoundError:
        return "0"  # a checkout that is not installed
