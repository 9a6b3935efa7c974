"""One process that serves: the application in uvicorn, on a socket that listens already."""

import contextlib
import ctypes
import gc
import resource
import socket

import structlog
import uvicorn
from fastapi import FastAPI

from jobs.settings import Settings
from service.app import create_app
from service.protocol import Limits, limited
from service.slot import Slot
from service.state import Service
from tracing import recording

STOP_SECONDS = 5  # what is still being answered then is cut; streams and held answers end by themselves at once
MANY_FILES = 65_536  # where the system sets no limit
M_ARENA_MAX = -8  # as malloc.h has it
OTHER_FILES = 128  # that the process has open beside its callers' connections: to Redis and the store, modules, uploads


class Server(uvicorn.Server):
    """Lets go of held answers as soon as it is told to stop; a lifespan would hear of that when all are given."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self._app.state.service
        service.hub.stop()
        await super().shutdown(sockets)


def serve(settings: Settings, listener: socket.socket, slot: Slot) -> None:
    """Serve until SIGTERM or SIGINT; returns when what was being answered is over or cut."""
    share_heaps()
    num_connections = min(settings.max_connections, usable_files() - OTHER_FILES)
    if num_connections < settings.max_connections:
        structlog.get_logger("service").warning(
            "few_files", max_connections=num_connections, asked=settings.max_connections, raise_with="ulimit -n"
        )
    tracing = recording.start("service", **slot.labels)
    app = create_app(settings, slot, tracing)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=limited(
            Limits(
                num_connections,
                settings.max_connections_per_address,
                settings.max_header_bytes,
                settings.max_unread_bytes,
                settings.client_seconds,
            )
        ),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()  # imports what is left to import
    gc.collect()
    gc.freeze()  # a full collection would look at the half million objects of modules: 65 ms, twice a second under load
    Server(config, app).run(sockets=[listener])


def share_heaps() -> None:
    """Let all threads share two heaps of glibc's. By default each thread leaves one of its own half empty."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def usable_files() -> int:
    """Raise the number of files that the process may open to the most that it may set, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = MANY_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (usable, most))
    return usable
