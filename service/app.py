"""The application: routes, errors, middleware, and what lives as long as it does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from jobs.settings import Settings
from service import (
    openapi,
    page,
    problems,
    routes_events,
    routes_files,
    routes_fleet,
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
from service.metrics import Metrics
from service.middleware import Requests
from service.state import connect

THREADS = 4  # more only fight for the interpreter: a call of the queue is short and mostly Python, 16 were slower
DESCRIPTION = "Images from ADM diffusion models, batched step by step."


def create_app(settings: Settings) -> FastAPI:
    """The service for one set of settings; connects when it starts, not here."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        service = connect(settings, metrics)
        app.state.service = service
        tasks = [
            asyncio.create_task(service.hub.run()),
            asyncio.create_task(service.upkeep.run()),
            asyncio.create_task(service.webhooks.run()),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.hub.close()
        await service.async_redis.aclose()
        service.redis.close()

    app = FastAPI(
        title="ADM Serve",
        version=own_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        servers=[{"url": settings.root_path or "/"}],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        telemetry={"tracing": False},
    )
    app.include_router(routes_jobs.router)
    app.include_router(routes_list.router)
    app.include_router(routes_images.router)
    app.include_router(routes_zip.router)
    app.include_router(routes_events.router)
    app.include_router(routes_openai.router)
    app.include_router(routes_files.router)
    app.include_router(routes_requests.router)
    app.include_router(routes_fleet.router)
    app.include_router(routes_runs.router)
    app.include_router(routes_health.router)
    page.install(app)
    problems.install(app)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(
        Requests,
        metrics=metrics,
        settings=settings,
        body_limits=dict.fromkeys(
            (routes_files.PREFIX, routes_requests.FROM_IMAGE, *routes_openai.FORMS),
            settings.max_upload_bytes + routes_files.MAX_FRAMING_BYTES,
        ),
    )
    if settings.cors_origins:  # outermost: refusals too must say that a page may read them
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=tuple(openapi.HEADERS),
        )
    openapi.install(app)
    return app


def operation_id(route: APIRoute) -> str:
    """Operations are named as their functions, which is what generated clients call them."""
    return route.name


def own_version() -> str:
    try:
        return version("adm-serve")
    except PackageNotFoundError:
        return "0"  # run from a checkout that was not installed
